# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: bit for bit on any mesh, damage never passes, nothing is lost."""

import binascii
import errno
import gc
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoint_states import flatten, make_abstract, make_mesh, make_state

from mambaout_jax.runtime.checkpoint import Checkpointer, SaveError, read_checkpoint, read_meta


def assert_same(actual, expected):
    actual, expected = flatten(actual), flatten(expected)
    assert actual == expected
    assert len(expected) == 14


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with the checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("two_steps")
    with Checkpointer(directory, keep=2) as checkpointer:
        checkpointer.save(1, make_state(1), {"seed": 1})
        checkpointer.save(2, make_state(2), {"seed": 2})
    return directory


@pytest.fixture
def directory(two_steps, tmp_path):
    """A copy of `two_steps` to damage."""
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_restore_returns_every_leaf_bit_for_bit_in_its_containers(two_steps):
    state = make_state(2)
    with Checkpointer(two_steps, keep=2) as checkpointer:
        restored = checkpointer.restore(make_abstract(state))
    assert restored.step == 2
    assert restored.meta == {"seed": 2}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert_same(restored.state, state)


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), (1, 8)])
def test_restore_onto_another_mesh_is_bit_for_bit(two_steps, data, fsdp):
    state, mesh = make_state(2), make_mesh(data, fsdp)
    with Checkpointer(two_steps, keep=2) as checkpointer:
        restored = checkpointer.restore(make_abstract(state, mesh))
    kernel = restored.state.variables["params"]["backbone"]["stem"]["kernel"]
    assert kernel.sharding.mesh.shape == {"data": data, "fsdp": fsdp}
    assert kernel.addressable_shards[0].data.shape == (64 // fsdp, 16)
    assert_same(restored.state, state)


def test_save_of_a_sharded_state_is_bit_for_bit(tmp_path):
    state = make_state(1, make_mesh(2, 4))
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {})
        assert_same(checkpointer.restore(make_abstract(state, make_mesh(8, 1))).state, state)


def test_save_lets_the_caller_donate_at_once(tmp_path):
    state = make_state(1)
    expected = flatten(state)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {})
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
        restored = checkpointer.restore(make_abstract(make_state(1)))
    assert flatten(restored.state) == expected


def test_read_checkpoint_needs_no_target(two_steps):
    restored = read_checkpoint(two_steps)
    assert (restored.step, restored.meta) == (2, {"seed": 2})
    assert_same(restored.state, make_state(2))
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(restored.state))


def test_read_checkpoint_of_nothing_names_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path / 'none'}"):
        read_checkpoint(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_meta_on_disk_holds_shape_dtype_and_sum_of_every_leaf(two_steps):
    leaves = json.loads((two_steps / "2" / "meta" / "data.json").read_text())["leaves"]
    assert leaves == {
        path[1:]: {"shape": list(shape), "dtype": dtype, "crc32": binascii.crc32(data)}
        for path, (dtype, shape, data) in flatten(make_state(2)).items()
    }
    assert leaves["variables/params/backbone/stem/kernel"]["shape"] == [64, 16]


def test_restore_of_nothing_is_none(tmp_path):
    with Checkpointer(tmp_path / "new", keep=1) as checkpointer:
        assert checkpointer.restore(make_abstract(make_state(0))) is None
        assert checkpointer.steps() == []
        assert checkpointer.latest_path is None


def test_directory_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpointer(Path("run"), keep=1) as checkpointer:
        monkeypatch.chdir("/")
        checkpointer.save(3, {"x": jnp.ones(2)}, {})
        checkpointer.wait()
        assert checkpointer.latest_path == tmp_path / "run" / "3"


def test_keep_leaves_the_newest(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (5, 10, 15, 20):
            checkpointer.save(step, {"x": jnp.float32(step)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [15, 20]
    assert read_checkpoint(tmp_path).state["x"] == 20


def test_save_of_an_existing_step_changes_nothing(directory):
    with Checkpointer(directory, keep=2) as checkpointer:
        checkpointer.save(2, make_state(7), {"seed": 7})
    restored = read_checkpoint(directory)
    assert restored.meta == {"seed": 2}
    assert_same(restored.state, make_state(2))


def test_save_of_an_older_step_is_an_error(directory):
    with Checkpointer(directory, keep=2) as checkpointer:
        checkpointer.save(3, make_state(3), {})
        with pytest.raises(ValueError, match=r"step 1 is older than the newest checkpoint .*/3"):
            checkpointer.save(1, make_state(1), {})


def test_meta_is_returned_as_json_has_it(tmp_path):
    meta = {"name": "größe", "scale": (0.08, 1.0), 3: None, "huge": 2**60, "tiny": 1e-300}
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"x": jnp.ones(2)}, meta)
    expected = {"name": "größe", "scale": [0.08, 1.0], "3": None, "huge": 2**60, "tiny": 1e-300}
    assert read_checkpoint(tmp_path).meta == expected


def test_meta_that_is_no_json_is_an_error(tmp_path):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        with pytest.raises(TypeError, match="ndarray is not JSON serializable"):
            checkpointer.save(1, {"x": jnp.ones(2)}, {"a": np.ones(2)})
        assert checkpointer.steps() == []


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "0.orbax-checkpoint-tmp-deleted"])
def test_leftovers_of_killed_saves_and_deletions_are_removed(directory, name):
    leftover = directory / name / "state"
    leftover.mkdir(parents=True)
    (leftover / "data").write_bytes(b"half")
    with Checkpointer(directory, keep=2) as checkpointer:
        assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
        assert checkpointer.steps() == [1, 2]


def test_files_left_by_killed_saves_are_removed_and_links_among_them_not_followed(directory):
    (directory / "55.orbax-checkpoint-tmp-1").write_bytes(b"half")
    (directory / "56.orbax-checkpoint-tmp").symlink_to(directory / "2")
    with Checkpointer(directory, keep=2) as checkpointer:
        assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
        assert checkpointer.restore(make_abstract(make_state(2))).step == 2


def test_what_is_no_checkpoint_is_told_and_left_alone(directory, caplog):
    (directory / "0060").mkdir()
    (directory / "notes.txt").write_text("x")
    (directory / "٣").mkdir()  # a decimal digit, too
    (directory / ".DS_Store").write_text("x")
    (directory / "unreadable").mkdir()
    with Checkpointer(directory, keep=2) as checkpointer:
        assert checkpointer.steps() == [1, 2]
        assert checkpointer.restore(make_abstract(make_state(2))).step == 2
    assert caplog.messages == [
        f"{directory / name} is no checkpoint and is ignored" for name in ("0060", "notes.txt", "٣")
    ]
    assert (directory / "0060").is_dir()


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"checkpoints is a file, where .* move it away"):
        Checkpointer(tmp_path / "checkpoints", keep=1)


def test_links_to_old_checkpoints_are_deleted_and_not_what_they_show(directory, tmp_path):
    (directory / "1").rename(tmp_path / "elsewhere")
    (directory / "1").symlink_to(tmp_path / "elsewhere")
    with Checkpointer(directory, keep=1) as checkpointer:
        checkpointer.save(3, {"x": jnp.ones(2)}, {})
    assert sorted(path.name for path in directory.iterdir()) == ["3"]
    assert (tmp_path / "elsewhere" / "meta").is_dir()


def test_read_meta_takes_the_newest_that_is_sound(directory):
    assert read_meta(directory) == {"seed": 2}
    copy_older(directory / "2")
    assert read_meta(directory) == {"seed": 1}
    empty(directory / "1")
    assert read_meta(directory) is None
    assert read_meta(directory / "none") is None


def test_a_flipped_byte_anywhere_never_gives_wrong_values(directory, caplog):
    expected = {step: flatten(make_state(step)) for step in (1, 2)}
    files = sorted(path for path in (directory / "2").rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    detected = set()
    for path in files:
        sound = path.read_bytes()
        for offset in {*range(0, len(sound), max(1, len(sound) // 3)), len(sound) - 1}:
            flip(path, offset)
            caplog.clear()
            restored = read_checkpoint(directory)
            assert flatten(restored.state) == expected[restored.step], (path, offset)
            assert restored.meta == {"seed": restored.step}
            if restored.step == 1:
                detected.add(path.relative_to(directory / "2").parts[:2])
                assert "checkpoint 2" in caplog.text
                assert "step 1 is used" in caplog.text
            path.write_bytes(sound)
    assert {("meta", "data.json"), ("state", "d"), ("state", "manifest.ocdbt")} <= detected
    assert read_checkpoint(directory).step == 2


def damage_values(step):
    """Flips a byte of the stored noise, which compression leaves as it is: Orbax sees nothing."""
    noise = np.asarray(make_state(2).variables["counts"]["bytes"])
    for path in step.rglob("d/*"):
        offset = path.read_bytes().find(noise.tobytes()[1000:1016])
        if offset >= 0:
            flip(path, offset)
            return
    raise AssertionError("the values are not stored as they are")


def truncate_data(step):
    for path in (step / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def remove_data(step):
    for path in step.glob("state/**/d/*"):
        path.unlink()


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def change_meta(step):
    path = step / "meta" / "data.json"
    path.write_text(path.read_text().replace('"seed": 2', '"seed": 3'))


def copy_older(step):
    shutil.rmtree(step)
    shutil.copytree(step.with_name("1"), step)


def link_older(step):
    shutil.rmtree(step)
    step.symlink_to("1", target_is_directory=True)


def make_file(step):
    shutil.rmtree(step)
    step.write_bytes(b"x")


def make_dangling(step):
    shutil.rmtree(step)
    step.symlink_to("nowhere")


DAMAGES = {
    "values": (damage_values, "CRC-32 differs of variables/counts/bytes"),
    "truncated": (truncate_data, ""),
    "no data": (remove_data, ""),
    "no manifest": (lambda step: (step / "state" / "manifest.ocdbt").unlink(), ""),
    "no state": (lambda step: shutil.rmtree(step / "state"), "state"),
    "no meta": (lambda step: shutil.rmtree(step / "meta"), "meta"),
    "empty": (empty, ""),
    "changed meta": (change_meta, "CRC-32 of its meta data differs"),
    "copy of another step": (copy_older, "it holds step 1, so it was copied or renamed"),
    "link to another step": (link_older, "it holds step 1, so it was copied or renamed"),
    "a file": (make_file, "NotADirectoryError"),
    "a link to nothing": (make_dangling, "FileNotFoundError"),
    "torn meta": (lambda step: (step / "meta" / "data.json").write_text('{"meta": {'), "JSON"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_restore_falls_back_and_sets_the_damaged_step_aside(directory, caplog, name):
    damage, reason = DAMAGES[name]
    damage(directory / "2")
    damaged = {p.relative_to(directory / "2"): p.stat().st_size for p in directory.rglob("2/**/*")}
    with Checkpointer(directory, keep=2) as checkpointer:
        with caplog.at_level(logging.WARNING, "mambaout_jax"):
            restored = checkpointer.restore(make_abstract(make_state(1)))
        assert (restored.step, restored.meta) == (1, {"seed": 1})
        assert_same(restored.state, make_state(1))
        messages = [r.getMessage() for r in caplog.records if r.name == "mambaout_jax"]
        assert len(messages) == 2
        assert messages[0].startswith(f"checkpoint 2 in {directory} cannot be read (")
        assert reason in messages[0]
        assert messages[0].endswith("step 1 is used instead")
        aside = directory / "unreadable" / "2"
        assert messages[1] == f"checkpoint 2 is moved to {aside}"
        assert os.path.lexists(aside)
        if not aside.is_symlink():
            assert {p.relative_to(aside): p.stat().st_size for p in aside.rglob("*")} == damaged
        assert checkpointer.steps() == [1]
        checkpointer.save(2, make_state(8), {"seed": 8})
    again = read_checkpoint(directory)
    assert (again.step, again.meta) == (2, {"seed": 8})
    assert_same(again.state, make_state(8))


@pytest.mark.parametrize(
    "name",
    ["truncated", *(pytest.param(n, marks=pytest.mark.slow) for n in ("no data", "no manifest"))],
)
def test_a_read_that_fails_for_many_leaves_gives_one_message(
    directory, name, caplog, capfd, monkeypatch
):
    messages = []
    monkeypatch.setattr(sys, "unraisablehook", messages.append)
    DAMAGES[name][0](directory / "2")
    assert read_checkpoint(directory).step == 1
    gc.collect()  # frees what could still report something
    assert messages == []
    assert [record.getMessage()[:12] for record in caplog.records] == ["checkpoint 2"]
    assert capfd.readouterr().err == ""


def test_restored_arrays_can_be_donated_at_once(two_steps):
    expected = flatten(make_state(2))
    abstract = make_abstract(make_state(2), make_mesh(2, 4))
    with Checkpointer(two_steps, keep=2) as checkpointer:
        first, second = (checkpointer.restore(abstract).state for _ in range(2))
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    doubled = double(double(first))
    noise = np.asarray(make_state(2).variables["counts"]["bytes"])
    for shard in doubled.variables["counts"]["bytes"].addressable_shards:
        np.testing.assert_array_equal(shard.data, noise * np.uint8(4))
    assert flatten(second) == expected


def test_a_step_set_aside_twice_keeps_both(directory):
    with Checkpointer(directory, keep=2) as checkpointer:
        for _ in range(2):
            empty(directory / "2")
            assert checkpointer.restore(make_abstract(make_state(1))).step == 1
            checkpointer.save(2, make_state(2), {"seed": 2})
            checkpointer.wait()
        assert sorted(p.name for p in (directory / "unreadable").iterdir()) == ["2", "2_2"]
        assert checkpointer.restore(make_abstract(make_state(1))).step == 2


def test_restore_without_a_sound_step_gives_every_reason_and_moves_nothing(directory):
    damage_values(directory / "2")
    empty(directory / "1")
    with Checkpointer(directory, keep=2) as checkpointer:
        with pytest.raises(RuntimeError) as error:
            checkpointer.restore(make_abstract(make_state(1)))
        assert checkpointer.steps() == [1, 2]
    lines = str(error.value).splitlines()
    assert lines[0] == f"no checkpoint in {directory} can be read:"
    assert lines[1].startswith("  2: ValueError: the CRC-32 differs of variables/counts/bytes")
    assert lines[2].startswith("  1: ")
    assert lines[3].startswith("All of them stay in place. Put back a copy")
    assert not (directory / "unreadable").exists()


def test_restore_of_another_model_lists_both_sides_and_moves_nothing(directory):
    state = make_state(2, width=24)
    variables = jax.tree.map(lambda x: x, state.variables)
    head = variables["params"]["head"]
    head["weight"] = head.pop("kernel")
    variables["counts"]["seen"] = variables["counts"]["seen"].astype(jnp.int32)
    state = state.replace(variables=variables)
    with Checkpointer(directory, keep=2) as checkpointer:
        with pytest.raises(ValueError, match="another model or optimizer") as error:
            checkpointer.restore(make_abstract(state))
        assert checkpointer.steps() == [1, 2]
    lines = str(error.value).splitlines()
    assert str(directory / "2") in lines[0]
    assert lines[1] == "  1 missing in the checkpoint: variables/params/head/weight"
    assert lines[2] == "  1 only in the checkpoint: variables/params/head/kernel"
    assert lines[3].startswith("  9 of another shape or dtype: ")
    kernel = "variables/params/backbone/stem/kernel (float32[64, 16] in the checkpoint, "
    assert kernel + "float32[64, 24] here)" in lines[3]
    assert "counts/seen (bool[2] in the checkpoint, int32[2] here)" in lines[3]
    assert not (directory / "unreadable").exists()


def test_a_failed_background_save_surfaces_and_names_the_last_good_one(directory, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpointer(directory, keep=2) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", full)
            checkpointer.save(3, make_state(3), {"seed": 3})
            with pytest.raises(
                SaveError, match=r"checkpoints: No space left on device\. The new"
            ) as error:
                checkpointer.wait()
        assert f"newest complete one is {directory / '2'};" in str(error.value)
        assert checkpointer.steps() == [1, 2]
        checkpointer.save(3, make_state(3), {"seed": 3})
    assert_same(read_checkpoint(directory).state, make_state(3))


def spoil_by_a_file(directory):
    shutil.rmtree(directory)
    directory.write_text("x")
    return "File exists"


def spoil_by_a_missing_disk(directory):
    shutil.rmtree(directory)
    directory.symlink_to("nowhere")
    return "File exists"


@pytest.mark.parametrize("spoil", [spoil_by_a_file, spoil_by_a_missing_disk])
def test_a_directory_that_cannot_be_written_to_is_told_before_orbax_waits_for_it(directory, spoil):
    threads = threading.active_count()
    with Checkpointer(directory, keep=2) as checkpointer:
        words = spoil(directory)
        with pytest.raises(
            SaveError, match=rf"could not be written to {directory}: .*{words}"
        ) as error:
            checkpointer.save(3, {"x": jnp.ones(2)}, {})
    assert "There is no complete one; check the free space" in str(error.value)
    assert threading.active_count() <= threads
