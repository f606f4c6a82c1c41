from __future__ import annotations

import fcntl
import os

import pytest
from toy import toy_run

from pyft.errors import ConfigError, DiskError
from pyft.run.layout import LOCK
from pyft.run.lock import claim_folder


def test_folder_and_parents_are_made_and_held(tmp_path):
    folder = tmp_path / "a b" / "输出"
    with claim_folder(folder):
        assert (folder / LOCK).read_text().strip() == str(os.getpid())
        with pytest.raises(ConfigError, match=rf"pid {os.getpid()}\) is writing there .*输出"):
            claim_folder(folder)
    claim_folder(folder).release()


def test_second_process_is_refused_and_the_lock_dies_with_its_process(tmp_path, forge):
    folder = tmp_path / "run"
    assert forge.run(folder=folder, lock=True, fault="kill_before_rename@4") == -9
    with claim_folder(folder):
        pid, output = forge.start(folder=folder, lock=True)
        assert forge.wait(pid) == 2
        assert f"pid {os.getpid()}" in output.read_text() and str(folder) in output.read_text()
    assert forge.run(folder=folder, lock=True) == 0


def test_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=rf"thesis\.tex.*{tmp_path}"):
        claim_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_own_folder_is_taken_again(tmp_path):
    claim_folder(tmp_path).release()
    (tmp_path / "config.yaml").write_text("mode: sft")
    claim_folder(tmp_path).release()
    (tmp_path / LOCK).unlink()
    (tmp_path / "trainer_log.jsonl").write_text("")
    claim_folder(tmp_path).release()


def test_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is not a folder"):
            claim_folder(path)


def test_not_writable_is_found(tmp_path, monkeypatch):
    with pytest.raises(DiskError, match="/proc/pyft"):
        claim_folder(type(tmp_path)("/proc/pyft"))

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pyft.run.lock.write_new_file", read_only)
    with pytest.raises(DiskError, match="Read-only file system"):
        claim_folder(tmp_path)


def test_lock_file_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "victim").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(DiskError, match="symbolic link"):
        claim_folder(run)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "sft"])
def test_finished_run_is_locked_without_a_trace(tmp_path, below):
    folder = tmp_path / "run"
    claim_folder(folder).release()
    toy_run(folder / below, settings={"max_steps": 1}, questions=False)
    (folder / LOCK).write_text("1\n")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    with claim_folder(folder), open(folder / LOCK) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
