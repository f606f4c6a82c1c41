"""Whole files, and what a failing disk is known by."""

from __future__ import annotations

import errno
import os

import pytest

from pyft.disk import disk_error, replace_file, settle, staged_folder, staging_path, try_lock
from pyft.errors import DiskError


def test_disk_errors_are_recognised(tmp_path):
    for error in (
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        Exception("Error while serializing: I/O error: File too large (os error 27)"),
    ):
        assert isinstance(disk_error(tmp_path, error, 5), DiskError)
    for error in (OSError(errno.ECHILD, "No child processes"), Exception("(os error 10)"), KeyError("x")):
        assert disk_error(tmp_path, error) is None


def test_file_is_replaced_in_one_stroke(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    replace_file(tmp_path / "link", b"new")
    assert target.read_bytes() == b"old" and (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()
    with pytest.raises(DiskError):
        replace_file(target / "below", b"x")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    staging_path(target).mkdir()
    (staging_path(target) / "old").write_text("left by a killed process")
    with staged_folder(target, staging_path(target)) as staging:
        (staging / "new").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    with (
        pytest.raises(KeyboardInterrupt),
        staged_folder(tmp_path / "other", tmp_path / ".other") as staging,
    ):
        (staging / "half").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_what_libraries_write_gets_the_mode_of_the_umask(tmp_path, umask):
    (tmp_path / "sub").mkdir()
    for name, mode in (("b", 0o600), ("a", 0o777), ("sub/c", 0o600)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    before = os.umask(umask)
    try:
        files = settle(tmp_path)
    finally:
        os.umask(before)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["a", "b", "sub/c"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_a_lock_is_held_as_long_as_the_file_is_open(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert try_lock(first) and not try_lock(second)
    os.close(first)
    assert try_lock(second)
    os.close(second)
