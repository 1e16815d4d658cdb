# SPDX-License-Identifier: Apache-2.0
"""Turn taking, limits and statistics of the benchmarks, with a clock or limits that tests hold."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.benchmarks import timing
from mambaout_jax.benchmarks.timing import Contender, Limits, race

PLENTY = Limits(memory=2**30, seconds=60)
X = np.ones(4, np.float32)


def test_contenders_take_turns_and_times_are_per_call(monkeypatch):
    now, order = 0.0, []

    def clock():
        return now

    def call(name, seconds):
        def run():
            nonlocal now
            now += seconds
            order.append(name)

        return run

    monkeypatch.setattr(timing.time, "perf_counter", clock)
    calls = {"a": call("a", 2.0), "b": call("b", 0.5)}
    times = timing.interleaved_milliseconds(calls, rounds=3, calls_per_round=2, untimed=False)
    assert times == {"a": [2000.0] * 3, "b": [500.0] * 3}
    assert order == ["a", "b"] + ["a", "a", "b", "b"] * 3  # a warm-up of each, then turns

    order.clear()
    counts = {"a": 1, "b": 3}
    times = timing.interleaved_milliseconds(
        calls, rounds=2, calls_per_round=counts, untimed={"a": False, "b": True}
    )
    assert times == {"a": [2000.0] * 2, "b": [500.0] * 2}
    assert order == ["a", "b"] + ["a", "b", "b", "b", "b"] * 2


def test_turns_begin_with_a_call_that_does_not_count(monkeypatch):
    now, durations = 0.0, iter([9.0, 9.0, 1.0, 9.0, 3.0])  # warm-up; untimed, timed, twice

    def run():
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    times = timing.interleaved_milliseconds({"a": run}, rounds=2, calls_per_round=1)
    assert times == {"a": [1000.0, 3000.0]}


def test_turns_are_planned_from_what_a_call_takes():
    seconds = {"microseconds": 1e-6, "some": 0.003, "long": 0.02, "longest": 0.31}
    assert timing.plan_turns(seconds) == {
        "calls_per_round": {"microseconds": 50, "some": 7, "long": 1, "longest": 1},
        "untimed": {"microseconds": True, "some": True, "long": True, "longest": False},
    }


def test_call_seconds_are_those_of_the_second_call(monkeypatch):
    now, durations = 0.0, iter([9.0, 2.0])

    def run():
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.call_seconds(run) == 2.0


def test_contenders_need_a_round():
    with pytest.raises(ValueError, match="rounds=0: each contender needs at least 1"):
        timing.interleaved_milliseconds({"a": X.copy}, rounds=0, calls_per_round=1)


def test_speedup_is_taken_round_by_round():
    # The machine was four times slower in the second round: the ratio does not see it.
    assert timing.speedup([10, 40, 12], [5, 20, 3]) == {"median": 2, "min": 2, "max": 4}
    assert timing.summary([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


def test_environment_names_the_device_and_versions():
    environment = timing.environment()
    assert environment["platform"] == "cpu"
    assert environment["device_count"] == 8
    assert environment["jax"] == jax.__version__
    assert timing.environment(jax.devices()[3]) == environment


def test_device_that_is_not_there_is_an_error():
    assert timing.find_device(None) == timing.find_device("cpu") == jax.devices()[0]
    with pytest.raises(ValueError, match=r"device='gpu' is not there: .*default here is 'cpu'"):
        timing.find_device("gpu")


def test_free_memory_is_two_thirds_of_what_the_machine_has_available(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000 kB\nMemFree:  10 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr(timing, "_MEMINFO", meminfo)
    assert timing.free_memory(jax.devices()[0]) == 2000 * 1024
    monkeypatch.setattr(timing, "_MEMINFO", tmp_path / "none")
    pages = {"SC_PHYS_PAGES": 300, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(timing.os, "sysconf", pages.__getitem__)
    assert timing.free_memory(jax.devices()[0]) == 200 * 4096


def test_free_memory_of_an_accelerator_is_what_it_reports():
    gpu = mock.Mock(spec=jax.Device, platform="gpu", device_kind="some GPU")
    gpu.memory_stats.return_value = {"bytes_limit": 1000, "bytes_in_use": 300}
    assert timing.free_memory(gpu) == 700
    gpu.memory_stats.return_value = None
    with pytest.raises(ValueError, match="some GPU does not report how much memory is free"):
        timing.free_memory(gpu)


def counted(calls, function=lambda x: x):
    """A function to compile which counts how often it runs."""

    def run(x):
        calls.append(1)
        return np.asarray(function(x), np.float32)

    return lambda x: jax.pure_callback(run, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_race_measures_and_keeps_every_round():
    contenders = {"one": Contender(lambda x: x + 1, (X,)), "two": Contender(jnp.sin, (X,))}
    result = race(contenders, rounds=3, limits=PLENTY)
    for name, row in result.rows.items():
        rounds = result.milliseconds[name]
        assert len(rounds) == 3
        assert (row["status"], row["note"]) == ("measured", "")
        assert row["min_ms"] == min(rounds)
        assert row["median_ms"] == sorted(rounds)[1]
        assert row["max_ms"] == max(rounds)
        assert row["call_seconds"] > 0
        assert row["compile_seconds"] > 0
        assert row["needed_bytes"] == row["temp_bytes"] + 2 * X.nbytes


def test_race_refuses_what_does_not_fit_before_it_runs():
    calls = []
    limits = Limits(memory=2 * X.nbytes + 99, seconds=60)
    contenders = {
        "large": Contender(counted(calls), (X,), least_temp=100),
        "small": Contender(lambda x: x + 1, (X,), least_temp=99),
    }
    result = race(contenders, rounds=2, limits=limits)
    row = result.rows["large"]
    assert (row["status"], row["note"]) == ("too large", "needs 132 bytes, and 131 may be used")
    assert (row["temp_bytes"], row["needed_bytes"], row["median_ms"]) == (100, 132, None)
    assert calls == []
    assert result.rows["small"]["status"] == "measured"
    assert list(result.milliseconds) == ["small"]


def test_race_refuses_what_is_expected_to_be_slow_before_it_runs():
    calls = []
    slow = Contender(counted(calls), (X,), estimate=10.0)
    row = race({"slow": slow}, rounds=2, limits=Limits(2**30, 39.0)).rows["slow"]
    note = "would take 40 s for 4 calls, and 39 s may be used"
    assert (row["status"], row["note"], row["call_seconds"]) == ("too slow", note, 10.0)
    assert calls == []
    # An estimate within the limit is replaced by a trial.
    row = race({"slow": slow}, rounds=2, limits=Limits(2**30, 40.0)).rows["slow"]
    assert row["status"] == "measured"
    assert row["call_seconds"] < 10
    assert len(calls) >= 4


def test_race_refuses_what_is_slow_after_one_call():
    calls = []

    def sleep(x):
        timing.time.sleep(0.1)
        return x

    slow = Contender(counted(calls, sleep), (X,))
    row = race({"slow": slow}, rounds=3, limits=Limits(2**30, 0.4)).rows["slow"]
    assert row["status"] == "too slow"
    assert row["call_seconds"] >= 0.1
    assert row["median_ms"] is None
    assert len(calls) == 1


def test_race_reports_an_error_and_measures_the_others():
    def broken(x):
        raise ValueError("this does not compile\nand here is why")

    contenders = {"broken": Contender(broken, (X,)), "whole": Contender(jnp.cos, (X,))}
    result = race(contenders, rounds=2, limits=PLENTY)
    row = result.rows["broken"]
    assert (row["status"], row["note"]) == ("error", "this does not compile")
    assert row["compile_seconds"] is None
    assert result.rows["whole"]["status"] == "measured"
    assert timing.first_line(KeyError()) == "KeyError"


def test_race_reports_an_error_in_the_middle(monkeypatch):
    def out_of_memory(calls, **_):
        raise MemoryError("no memory left")

    monkeypatch.setattr(timing, "interleaved_milliseconds", out_of_memory)
    result = race({"one": Contender(jnp.cos, (X,))}, rounds=2, limits=PLENTY)
    assert result.rows["one"]["status"] == "error"
    assert result.rows["one"]["note"] == "no memory left"
    assert result.milliseconds == {}
