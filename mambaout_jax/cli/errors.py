# SPDX-License-Identifier: Apache-2.0
"""What the user reads after a mistake: one line, and the exit code that goes with it."""

import argparse
import difflib
import os
import re
import sys

# Errors whose message alone tells the user what to do. Any other is a bug and keeps its traceback.
EXPECTED = (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError)

_WRONG_USAGE = (
    ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError
)  # fmt: skip


def report(error: Exception) -> int:
    """Prints an error as one line on the standard error and returns the exit code.

    Returns:
        2 if the command was wrong (a value, a path), 1 if it failed.

    Raises:
        Exception: `error` itself, where the environment variable MAMBAOUT_TRACEBACK is set.
    """
    if os.environ.get("MAMBAOUT_TRACEBACK"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, _WRONG_USAGE) else 1


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """All options of a parser, such as "--workdir"."""
    return re.findall(r"--[a-z-]+", parser.format_usage())  # argparse has no public list of them


def reject_unknown(parser: argparse.ArgumentParser, rest: list[str]) -> None:
    """Exits with code 2 if there is an argument that the verb does not take.

    Args:
        parser: The verb's parser.
        rest: What it did not recognise. Where the verb has --config, settings and their values are
            among them; `config_file.override` checks those.
    """
    known = option_names(parser)
    takes_settings = "--config" in known
    for argument in rest:
        if takes_settings and (argument.startswith("--config.") or not argument.startswith("-")):
            continue
        close = difflib.get_close_matches(argument.split("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"there is no argument {argument}{hint}")
