from __future__ import annotations

import errno
import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from toy import same_run, toy_run, toy_trainer

from pyft.errors import DiskError
from pyft.run import checkpoint as checkpoints
from pyft.run.checkpoint import problems, rotate, write_checkpoint
from pyft.run.layout import list_checkpoints


def write(folder, step, text="weights", needed_bytes=100, **options):
    def weights(staging):
        (staging / "w.bin").write_text(text)
        (staging / "sub").mkdir()
        (staging / "sub" / "x.txt").write_text("x")

    return write_checkpoint(folder, step, [weights], needed_bytes=needed_bytes, **options)


def steps(folder):
    return [step for step, _ in list_checkpoints(folder)]


def test_manifest_lists_every_other_file(tmp_path):
    path = write(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"w.bin", "sub/x.txt"} and manifest["step"] == 7
    assert manifest["files"]["w.bin"]["size"] == 7
    assert problems(path) == []
    (path / "sub" / "x.txt").write_text("y")
    assert problems(path) == ["sub/x.txt: its SHA-256 is not the manifest's"]
    assert problems(path, hashes=False) == []
    (path / "w.bin").unlink()
    assert "missing: w.bin" in problems(path)


def test_every_checkpoint_of_a_run_has_the_same_files(straight):
    names = [{path.name for path in folder.iterdir()} for _, folder in list_checkpoints(straight)]
    assert len(names) == 2 and names[0] == names[1]
    assert names[0] == {
        "weights.safetensors",
        "optimizer.safetensors",
        "rng_state.safetensors",
        "trainer_state.json",
        "manifest.json",
    }


def test_everything_is_synced_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        return real_fsync(descriptor)

    def rename(source, target):
        events.append(("rename", str(target)))
        return real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write(tmp_path, 3)
    staging, final = f"{tmp_path}/.checkpoint-3.staging", f"{tmp_path}/checkpoint-3"
    at = events.index(("rename", final))
    synced = {path for kind, path in events[:at] if kind == "sync"}
    for name in ("/w.bin", "/sub/x.txt", "/manifest.json", "/sub", ""):
        assert staging + name in synced
    order = [path for kind, path in events[:at] if kind == "sync"]
    assert order.index(f"{staging}/manifest.json") > max(
        order.index(staging + name) for name in ("/w.bin", "/sub/x.txt")
    )
    assert ("sync", str(tmp_path)) in events[at:]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write_checkpoint(
            tmp_path,
            1,
            [lambda folder: save_file({"a": torch.zeros(2)}, folder / "a.safetensors")],
            needed_bytes=1,
        )
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file


def test_modes_of_a_whole_run_follow_the_umask(tmp_path, forge):
    assert forge.run(folder=tmp_path / "run", umask=0o027) == 0
    for path in (tmp_path / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_rotation_keeps_the_newest_whole_ones_and_the_one_resumed_from(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    rotate(tmp_path, 2, keep=tmp_path / "checkpoint-1")
    assert steps(tmp_path) == [1, 3, 4, 5]  # 4 is damaged: it counts for nothing
    write(tmp_path, 6)
    rotate(tmp_path, 1)
    assert steps(tmp_path) == [6]
    write(tmp_path, 7)
    (tmp_path / "checkpoint-7" / "w.bin").unlink()
    rotate(tmp_path, 1)
    assert steps(tmp_path) == [6, 7]  # the last whole one stays


def test_rotation_in_a_run(tmp_path):
    toy_run(tmp_path / "two")
    assert steps(tmp_path / "two") == [6, 8]
    toy_run(tmp_path / "one", settings={"save_total_limit": 1})
    assert steps(tmp_path / "one") == [8]
    toy_run(tmp_path / "resumed", settings={"max_steps": 4, "save_total_limit": 1})
    toy_run(tmp_path / "resumed", settings={"save_total_limit": 1})
    assert steps(tmp_path / "resumed") == [4, 8]


def test_rotation_removes_a_link_not_what_it_points_to(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    write(elsewhere, 1)
    (run / "checkpoint-1").symlink_to(elsewhere / "checkpoint-1")
    write(run, 2)
    rotate(run, 1)
    assert steps(run) == [2] and not (run / "checkpoint-1").is_symlink()
    assert problems(elsewhere / "checkpoint-1") == []


def test_links_in_the_way_are_never_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / ".checkpoint-2.staging").symlink_to(victim)
    write(run, 2)
    assert list(victim.iterdir()) == [] and problems(run / "checkpoint-2") == []
    (run / "checkpoint-3").symlink_to(victim)
    with pytest.raises(DiskError, match="checkpoint-3"):
        write(run, 3)
    assert list(victim.iterdir()) == [] and not (run / ".checkpoint-3.staging").exists()


def test_log_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run" / "trainer_log.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(DiskError, match=r"symbolic link.*trainer_log\.jsonl"):
        toy_trainer(tmp_path / "run", questions=False)[0].run()
    assert (tmp_path / "victim").read_text() == "mine"


def full_disk(folder):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust(folder):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [full_disk, full_disk_in_rust])
def test_full_disk_leaves_the_old_ones(tmp_path, fail):
    write(tmp_path, 1)
    with pytest.raises(DiskError, match=r"checkpoint-2.*about 123 bytes are needed, \d+ bytes are free"):
        write_checkpoint(
            tmp_path, 2, [lambda folder: (folder / "half").write_text("x"), fail], needed_bytes=123
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert problems(tmp_path / "checkpoint-1") == []


def test_too_little_room_is_found_before_writing(tmp_path):
    with pytest.raises(DiskError, match=rf"about {10**18} bytes are needed"):
        write(tmp_path, 1, needed_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path):
    def fail(folder):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_checkpoint(tmp_path, 1, [fail], needed_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_in_a_run(tmp_path, straight, forge):
    """A limit on file size that the weights keep and the optimizer's file breaks, in a real process."""
    folder = tmp_path / "run"
    assert forge.run(folder=folder, settings={"max_steps": 8}, fault="kill_between_files@4") == -9
    newest = folder / "checkpoint-2"
    limit = (newest / "weights.safetensors").stat().st_size + 500
    assert limit < (newest / "optimizer.safetensors").stat().st_size
    pid, output = forge.start(folder=folder, max_file_bytes=limit)
    assert forge.wait(pid) == 5
    text = output.read_text()
    assert "checkpoint-4" in text and "bytes are needed" in text and "bytes are free" in text
    assert steps(folder) == [2] and problems(newest) == []
    assert not [path for path in folder.iterdir() if "staging" in path.name]
    assert forge.run(folder=folder) == 0
    same_run(straight, folder)


def test_leftovers_of_a_kill_go(tmp_path):
    for name in (".checkpoint-4.staging", ".checkpoint-2.trash", ".result.staging"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / ".checkpoint-mine").mkdir()
    checkpoints.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-mine"]


def test_names_that_are_no_checkpoint_are_not_found(tmp_path):
    for name in ("checkpoint-", "checkpoint-4x", ".checkpoint-4.staging", "superseded-checkpoint-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert list_checkpoints(tmp_path) == [] and list_checkpoints(tmp_path / "absent") == []
