# SPDX-License-Identifier: Apache-2.0
"""The log of a run, `<workdir>/log.txt`: warnings, and what the terminal need not show."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "log.txt"

_LOG = logging.getLogger("mambaout_jax")


@contextlib.contextmanager
def log_file(workdir: Path) -> Iterator[None]:
    """Writes the package's warnings to `<workdir>/log.txt` too, and what Orbax logs only there.

    Of one failed save Orbax logs hundreds of lines, of which `SaveError` is the sense.
    """
    handler = _FileHandler(workdir / FILE_NAME)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            handler.handle(record)
        return True

    def note_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts or not note(record)

    # Filters, and not handlers: Python shows warnings by itself only where there is no handler.
    absl = logging.getLogger("absl")
    _LOG.addFilter(note)
    absl.addFilter(note_orbax)
    try:
        yield
    finally:
        _LOG.removeFilter(note)
        absl.removeFilter(note_orbax)


class _FileHandler(logging.Handler):
    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a line, where that is possible; whoever has to write there will say if not."""
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self.format(record)}\n")
