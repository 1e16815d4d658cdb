# SPDX-License-Identifier: Apache-2.0
"""Huge pages: asked for once, in the same process, and only where that helps."""

import json
import os
import subprocess
import sys

import pytest

from mambaout_jax import __main__
from mambaout_jax.cli import main as cli
from mambaout_jax.runtime import huge_pages

HELPS = {
    "sys.platform": "linux",
    "sys.executable": "/usr/bin/python3",
    "sys.orig_argv": ["python3", "-X", "utf8", "/usr/bin/mambaout", "models", "femto *"],
}


class Machine:
    """A Linux machine with huge pages on request, whose restarts are kept in a list."""

    def __init__(self, monkeypatch, directory):
        self.restarts, self.libc, self.mode = [], "glibc 2.35", directory / "enabled"
        self.mode.write_text("always [madvise] never\n")
        monkeypatch.setattr(huge_pages, "_KERNEL_MODE", self.mode)
        monkeypatch.setattr(os, "execve", lambda *arguments: self.restarts.append(arguments))
        monkeypatch.setattr(os, "confstr", lambda name: self.libc)
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        for name, value in HELPS.items():
            monkeypatch.setattr(name, value)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
    ],
)
def test_restart_keeps_interpreter_arguments_and_environment(machine, monkeypatch, before, after):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    huge_pages.restart_with_huge_pages()
    ((path, arguments, environment),) = machine.restarts
    assert path == "/usr/bin/python3"
    assert arguments == ["/usr/bin/python3", *HELPS["sys.orig_argv"][1:]]
    assert environment == {**os.environ, "GLIBC_TUNABLES": after}
    assert environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.36", "glibc 3.0"])
def test_restart_with_a_glibc_that_can(machine, libc):
    machine.libc = libc
    huge_pages.restart_with_huge_pages()
    assert len(machine.restarts) == 1


@pytest.mark.parametrize("libc", ["glibc 2.34", "glibc 2.9", "musl 1.2", "glibc x", "", None])
def test_no_restart_with_another_c_library(machine, libc):
    machine.libc = libc
    huge_pages.restart_with_huge_pages()
    assert machine.restarts == []


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_no_restart_where_the_kernel_has_decided(machine, mode):
    if mode is None:
        machine.mode.unlink()
    else:
        machine.mode.write_text(mode)
    huge_pages.restart_with_huge_pages()
    assert machine.restarts == []


@pytest.mark.parametrize("value", ["glibc.malloc.hugetlb=0", "a=1:glibc.malloc.hugetlb=1"])
def test_no_restart_where_the_variable_is_set(machine, monkeypatch, value):
    monkeypatch.setenv("GLIBC_TUNABLES", value)
    huge_pages.restart_with_huge_pages()
    assert machine.restarts == []


@pytest.mark.parametrize("name", ["sys.platform", "sys.executable"])
def test_no_restart_elsewhere(machine, monkeypatch, name):
    monkeypatch.setattr(name, {"sys.platform": "darwin", "sys.executable": ""}[name])
    huge_pages.restart_with_huge_pages()
    assert machine.restarts == []


def test_a_restarted_process_is_the_same_with_the_variable_set():
    code = (
        "import json, os, sys; from mambaout_jax.runtime import huge_pages\n"
        "huge_pages._given_on_request = lambda: True\n"
        "huge_pages.restart_with_huge_pages()\n"
        "print(json.dumps([os.getpid(), os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.prefix]))"
    )
    command = [sys.executable, "-c", code, "--flag", "two words", ""]
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        pid, tunables, arguments, prefix = json.loads(process.communicate(timeout=60)[0])
    assert (pid, arguments, prefix) == (process.pid, command[3:], sys.prefix)
    assert tunables == "glibc.malloc.hugetlb=1"


def test_the_command_restarts_before_it_reads_its_arguments(machine, monkeypatch):
    order = []
    monkeypatch.setattr(os, "execve", lambda *arguments: order.append("restart"))
    monkeypatch.setattr(cli, "main", lambda: order.append("main") or 3)
    assert __main__.run() == 3
    assert order == ["restart", "main"]
