# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a running training: a live bar on a terminal, plain lines elsewhere.

Times are the host's. JAX runs ahead of the host, so an interval is right if the loop has waited for
the values of its last step before it reports.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mambaout_jax.runtime.streams import say
from mambaout_jax.train.writer import Scalar

_BAR_WIDTH = 40  # characters


class Progress:
    """Times the steps of a run and shows them. A context manager.

    The first step compiles: it belongs to no interval and does not enter the remaining time.

    Args:
        total_steps: updates of the whole run.
        start_step: steps that an earlier process has made.
        batch_size: examples of one step, over all devices.
        steps_per_epoch: updates of one pass through the training set.
        live: a bar on standard error; otherwise lines on standard output. None: a bar where
            standard error is a terminal.
        quiet: show nothing, but measure: for all processes but one.
        console: where the bar is drawn.
        clock: seconds from any origin, never going back.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        batch_size: int,
        steps_per_epoch: int,
        live: bool | None = None,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total_steps, self._step = total_steps, start_step
        self._batch_size, self._steps_per_epoch = batch_size, steps_per_epoch
        self._clock = clock
        self._shown: list[str] = []  # parts of the last report: step, epoch, ..., eta
        self._quiet = quiet
        self._first: tuple[int, float] | None = None  # step and time, once it has been compiled
        self._begin_interval(start_step)
        if live is None:
            live = sys.stderr.isatty()
        self._live = None
        if live and not quiet:
            console = console or Console(stderr=True)
            self._live = Live(console=console, get_renderable=self._render)

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_):
        self._stop()

    def data_wait(self, seconds: float) -> None:
        """Counts time the loop has waited for a batch."""
        self._waited += seconds

    def advance(self, step: int) -> None:
        """Says that `step` has been dispatched; does not wait for the device."""
        self._step = step
        if self._first is None:
            self._begin_interval(step)
            self._first = step, self._since

    @contextlib.contextmanager
    def paused(self):
        """Keeps what is done inside, such as an evaluation, out of the interval's step time."""
        start = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - start

    def report(self, step: int, values: Mapping[str, Scalar]) -> dict[str, float]:
        """Shows the interval since the last report and begins the next one.

        Args:
            step: the last one made.
            values: to show beside the times, by name.

        Returns:
            "images_per_second", "step_milliseconds" and "data_wait_fraction" (of the time, 0 to 1)
            of the interval; nothing if the interval holds no step but the one that compiles.
        """
        now, steps = self._clock(), step - self._since_step
        seconds = now - self._since
        speed = {}
        if steps > 0 and seconds > 0:
            speed = {
                "images_per_second": steps * self._batch_size / seconds,
                "step_milliseconds": 1000 * seconds / steps,
                "data_wait_fraction": min(1.0, self._waited / seconds),
            }
        self._step, self._shown = step, self._parts(step, now, values, speed)
        if self._live is None:
            self.message("  ".join(self._shown))
        self._begin_interval(step)
        return speed

    def message(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        if self._live is not None:
            try:
                self._live.console.print(Text(text), soft_wrap=True)
                return
            except OSError:  # the terminal is gone; the run goes on
                self._stop()
        if not self._quiet:
            say(text)

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()  # standard output is its own no longer

    def _begin_interval(self, step: int) -> None:
        self._since = self._clock()
        self._since_step = step
        self._waited = 0.0

    def _parts(
        self, step: int, now: float, values: Mapping[str, Scalar], speed: Mapping[str, float]
    ) -> list[str]:
        parts = [f"step {step}/{self._total_steps}", f"epoch {step / self._steps_per_epoch:.1f}"]
        parts += [f"{name} {float(value):.4g}" for name, value in values.items()]
        if speed:
            parts += [
                f"images/s {speed['images_per_second']:.0f}",
                f"step {speed['step_milliseconds']:.0f} ms",
                f"data {100 * speed['data_wait_fraction']:.0f} %",
            ]
        return [*parts, f"eta {self._remaining(step, now)}"]

    def _remaining(self, step: int, now: float) -> str:
        """h:mm:ss at the mean pace so far, which includes evaluations and checkpoints."""
        if self._first is None or step <= self._first[0]:
            return "-:--:--"
        first_step, first_time = self._first
        pace = (now - first_time) / (step - first_step)
        seconds = math.ceil(pace * (self._total_steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _render(self) -> Group:
        bar = ProgressBar(total=self._total_steps, completed=self._step, width=_BAR_WIDTH)
        row = Table.grid(padding=(0, 2))
        row.add_row(bar, f"{self._step}/{self._total_steps}", *self._shown[-1:])
        return Group(row, Text("  ".join(self._shown[1:-1])))
