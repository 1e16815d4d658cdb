# SPDX-License-Identifier: Apache-2.0
"""The command `mambaout`: the parser and exit codes in `main`, and one module per verb.

A verb is a module that `main.VERBS` lists, named after it. It holds

    SUMMARY                        one line for `mambaout --help`
    EXAMPLES                       commands, shown below the arguments by `mambaout VERB --help`
    add_arguments(parser)          declares its arguments
    run(arguments, overrides)      does the work and returns the exit code

A verb with an argument --config also takes settings (--config.batch_size=128); these arrive as
`overrides`, which is empty for the other verbs. Modules that are slow to import are imported inside
`run`, so that `mambaout --help` stays quick.
"""
