# SPDX-License-Identifier: Apache-2.0
"""The command line in this process: what a failing command prints."""

import pytest

from mambaout_jax.cli.main import main


def error_line(capsys, *arguments, code=2):
    """The one line on the standard error of a command that fails with an exit code."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def usage_error(capsys, *arguments):
    """What argparse prints after wrong usage; the exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err
