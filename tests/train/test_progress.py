# SPDX-License-Identifier: Apache-2.0
"""Progress: the numbers of a run under a clock that the test turns, and what is shown of them."""

import io

import jax.numpy as jnp
import pytest
from rich.console import Console

from mambaout_jax.train.progress import Progress


class Clock:
    """Seconds, exact in binary so that sums are."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run_steps(progress, clock, steps, seconds=0.25, wait=0.0):
    for step in steps:
        progress.data_wait(wait)
        clock.now += seconds
        progress.advance(step)


def make(clock, start_step=0, live=False, **options):
    return Progress(550, start_step, 64, 22, live, clock=clock, **options)


def make_console(width=120):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def test_report_leaves_the_compiling_step_out(capsys):
    clock = Clock()
    with make(clock) as progress:
        run_steps(progress, clock, [1], seconds=60.0, wait=5.0)
        run_steps(progress, clock, range(2, 51), wait=0.0625)
        speed = progress.report(50, {"loss": 2.0})
    assert speed == {
        "images_per_second": 64 / 0.25,
        "step_milliseconds": 250.0,
        "data_wait_fraction": 0.25,
    }
    # 500 steps of a quarter of a second.
    assert capsys.readouterr().out == (
        "step 50/550  epoch 2.3  loss 2  images/s 256  step 250 ms  data 25 %  eta 0:02:05\n"
    )


def test_report_times_each_interval_by_itself_and_the_rest_by_the_mean(capsys):
    clock = Clock()
    with make(clock, start_step=100) as progress:
        run_steps(progress, clock, [101], seconds=30.0)
        run_steps(progress, clock, range(102, 111), seconds=0.25)
        progress.report(110, {})
        run_steps(progress, clock, range(111, 129), seconds=0.5, wait=0.125)
        speed = progress.report(128, {"loss": jnp.float32(0.61234), "rate": 1e-3})
    assert speed["step_milliseconds"] == 500.0
    assert speed["images_per_second"] == 128.0
    assert speed["data_wait_fraction"] == 0.25
    # 27 steps took 9 * 0.25 + 18 * 0.5 = 11.25 s; 422 are left: 175.8 s.
    assert capsys.readouterr().out.splitlines()[1] == (
        "step 128/550  epoch 5.8  loss 0.6123  rate 0.001  images/s 128  step 500 ms  data 25 %  "
        "eta 0:02:56"
    )


def test_report_of_the_compiling_step_alone_claims_no_speed(capsys):
    clock = Clock()
    with make(clock) as progress:
        run_steps(progress, clock, [1], seconds=60.0)
        assert progress.report(1, {"loss": 2.5}) == {}
        run_steps(progress, clock, [2], seconds=0.5)
        assert progress.report(2, {})["step_milliseconds"] == 500.0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/550  epoch 0.0  loss 2.5  eta -:--:--"
    assert second.endswith("eta 0:04:34")


def test_paused_time_is_in_the_remaining_time_but_in_no_interval(capsys):
    clock = Clock()
    with make(clock) as progress:
        run_steps(progress, clock, range(1, 6), seconds=1.0)
        with progress.paused():
            clock.now += 100.0
        run_steps(progress, clock, range(6, 12), seconds=1.0)
        speed = progress.report(11, {})
    assert speed["step_milliseconds"] == 1000.0
    # 10 steps took 110 s with the pause; 539 are left: 5929 s.
    assert capsys.readouterr().out.endswith("eta 1:38:49\n")


def test_the_last_report_has_nothing_left(capsys):
    clock = Clock()
    with make(clock, start_step=547) as progress:
        run_steps(progress, clock, range(548, 551))
        progress.report(550, {})
    assert capsys.readouterr().out.endswith("eta 0:00:00\n")


def test_message_is_a_plain_line_without_a_terminal(capsys):
    with make(Clock()) as progress:
        progress.message("evaluation [bold] top1 0.97")
    assert capsys.readouterr().out == "evaluation [bold] top1 0.97\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_live_follows_standard_error(monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    clock, console = Clock(), make_console()
    with make(clock, live=None, console=console) as progress:
        run_steps(progress, clock, range(1, 3))
        progress.report(2, {})
    assert ("2/550" in console.file.getvalue()) == terminal
    assert ("step 2/550" in capsys.readouterr().out) == (not terminal)


def test_bar_shows_the_step_the_report_and_messages_above(capsys):
    clock, console = Clock(), make_console()
    with make(clock, live=True, console=console) as progress:
        run_steps(progress, clock, range(1, 51))
        progress.report(50, {"loss": 2.0})
        run_steps(progress, clock, range(51, 276))
        progress.message("evaluation [bold] top1 0.97")
    lines = console.file.getvalue().splitlines()
    # The bar is 40 characters wide and half full: 20 of them, and the count to its right.
    bar = [line for line in lines if "275/550" in line][-1]
    assert bar.count("━") == 20
    assert "275/550  eta 0:02:05" in bar
    assert lines[-2] == "epoch 2.3  loss 2  images/s 256  step 250 ms  data 0 %"
    message = next(i for i, line in enumerate(lines) if "evaluation [bold] top1 0.97" in line)
    assert message < lines.index(bar)
    assert capsys.readouterr().out == ""


def test_bar_keeps_every_number_on_a_narrow_terminal():
    clock, console = Clock(), make_console(width=50)
    with make(clock, live=True, console=console) as progress:
        run_steps(progress, clock, range(1, 51))
        progress.report(50, {"loss": 2.0})
    words = console.file.getvalue().split()
    assert "0:02:05" in words
    assert "256" in words


def test_quiet_measures_and_shows_nothing(capsys):
    clock = Clock()
    with make(clock, live=True, quiet=True) as progress:
        run_steps(progress, clock, range(1, 51))
        speed = progress.report(50, {"loss": 2.0})
        progress.message("evaluation")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert speed["images_per_second"] == pytest.approx(256)


def test_run_goes_on_when_the_terminal_is_gone(monkeypatch, capsys):
    clock, console = Clock(), make_console()

    def hang_up(*_, **__):
        raise OSError(5, "Input/output error")

    with make(clock, live=True, console=console) as progress:
        monkeypatch.setattr(console, "print", hang_up)
        progress.message("step 1")
        progress.message("step 2")
    assert capsys.readouterr().out == "step 1\nstep 2\n"
