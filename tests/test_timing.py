# SPDX-License-Identifier: Apache-2.0
"""Turn taking and statistics of the benchmarks, with a clock that tests hold."""

from mambaout_jax.benchmarks import timing


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
    times = timing.interleaved_milliseconds(calls, rounds=3, calls_per_round=2)
    assert times == {"a": [2000.0] * 3, "b": [500.0] * 3}
    assert order == ["a", "b"] + ["a", "a", "b", "b"] * 3  # a warm-up of each, then turns


def test_speedup_is_taken_round_by_round():
    # The machine was four times slower in the second round: the ratio does not see it.
    assert timing.speedup([10, 40, 12], [5, 20, 3]) == {"median": 2, "min": 2, "max": 4}
    assert timing.summary([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


def test_environment_names_the_device_and_versions():
    import jax

    environment = timing.environment()
    assert environment["platform"] == "cpu"
    assert environment["device_count"] == 8
    assert environment["jax"] == jax.__version__
