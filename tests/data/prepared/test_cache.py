"""Prepared samples that are kept: found again by content, whole or not at all, and not for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from pyft.data.prepared import cache as cache_module
from pyft.data.prepared.cache import SampleCache, cache_folder, make_key
from pyft.data.prepared.chunk import EncodedChunk
from pyft.data.prepared.counts import Counts
from pyft.data.prepared.store import (
    CUT_TEXT_NAME,
    IDS_NAME,
    INDEX_NAME,
    LABELS_NAME,
    STORE_NAMES,
    StoreWriter,
)
from pyft.errors import DataError, DiskError

KEY = "k" * 64
DAY_SECONDS = 86_400


class Builder:
    """Writes a store of equal samples, and counts how often."""

    def __init__(self, token: int = 7, num_samples: int = 1) -> None:
        self.token, self.num_samples, self.times = token, num_samples, 0

    def __call__(self, folder: Path) -> dict:
        self.times += 1
        count = self.num_samples
        ids = np.array([self.token, 8, 9] * count, np.int32)
        three, rows, lines = np.full(count, 3, np.int32), np.arange(count, dtype=np.int32), np.arange(count)
        digests = np.zeros((count, 16), np.uint8)
        writer = StoreWriter(folder)
        writer.add(
            EncodedChunk(Counts(), None, ids, ids, three, three, three, rows, lines, digests, digests),
            0,
        )
        writer.close()
        return {"rows": self.times}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "缓存 cache"


def get(folder: Path, build: Builder, key: str = KEY):
    store, content, found = SampleCache(folder).get(key, ["a.jsonl"], build)
    return store[0].input_ids.tolist(), content, found


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "data"))


def test_made_once_then_found(folder):
    build = Builder()
    assert get(folder, build) == ([7, 8, 9], {"rows": 1}, None)
    assert get(folder, build) == ([7, 8, 9], {"rows": 1}, folder / "data" / KEY)
    assert get(folder, Builder(5), "other")[0] == [5, 8, 9]
    assert build.times == 1
    assert names_in(folder) == sorted([KEY, "other"])
    assert sorted(os.listdir(folder / "data" / KEY)) == sorted(["entry.json", *STORE_NAMES])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("a.jsonl:1: broken")])
def test_a_mistake_leaves_nothing(folder, error):
    def build(target: Path) -> dict:
        Builder()(target)
        raise error

    with pytest.raises(type(error)):
        get(folder, build)
    assert names_in(folder) == []


def test_a_full_disk_is_told_with_the_folder(folder):
    def build(target: Path) -> dict:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskError, match=r"No space left on device \(.*缓存 cache.*set data\.cache_dir"):
        get(folder, build)
    assert names_in(folder) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = path.with_name("other")
    other.mkdir()
    Builder(num_samples=50)(other)
    (other / IDS_NAME).replace(path)
    shutil.rmtree(other)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (IDS_NAME, cut),
        (IDS_NAME, swap),
        (IDS_NAME, os.unlink),
        (LABELS_NAME, cut),
        (LABELS_NAME, os.unlink),
        (CUT_TEXT_NAME, os.unlink),
        (INDEX_NAME, cut),
        (INDEX_NAME, flip),
        (INDEX_NAME, os.unlink),
        ("entry.json", cut),
        ("entry.json", os.unlink),
        ("entry.json", lambda path: path.write_text("[]")),
        ("", shutil.rmtree),
        ("", lambda path: [shutil.rmtree(path), path.mkdir()]),
    ],
)
def test_a_damaged_entry_is_made_again(folder, name, damage):
    build = Builder()
    get(folder, build)
    damage(folder / "data" / KEY / name)
    assert get(folder, build) == ([7, 8, 9], {"rows": 2}, None)
    assert get(folder, build)[1:] == ({"rows": 2}, folder / "data" / KEY)


def test_two_runs_at_once_make_one_entry(folder):
    inner, outer = Builder(), Builder()

    def build(target: Path) -> dict:
        assert get(folder, inner)[0] == [7, 8, 9]
        return outer(target)

    assert get(folder, build)[0] == [7, 8, 9]
    assert names_in(folder) == [KEY]
    assert get(folder, Builder())[1] == {"rows": 1}


def test_where_nothing_can_be_written_samples_are_made_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    blocked = tmp_path / "file"
    blocked.write_text("")
    build = Builder()
    for times in (1, 2):
        cache = SampleCache(blocked / "cache")
        assert "prepared data cannot be kept there" in cache.note and "PYFT_CACHE_DIR" in cache.note
        store, content, found = cache.get(KEY, ["a.jsonl"], build)
        del cache
        assert (store[0].input_ids.tolist(), content, found) == ([7, 8, 9], {"rows": times}, None)
        assert os.listdir(tmp_path / "temporary") == []


def begin(folder: Path, name: str, *, age_seconds: float, lock: bool = True) -> Path:
    staging = folder / "data" / f".staging-{name}"
    staging.mkdir(parents=True)
    if lock:
        (staging / "lock").touch()
    os.utime(staging, (time.time() - age_seconds,) * 2)
    return staging


def test_what_killed_runs_began_is_removed_and_what_others_are_writing_is_not(folder):
    killed = begin(folder, "killed", age_seconds=600)
    young = begin(folder, "young", age_seconds=1)
    written = begin(folder, "written", age_seconds=600)
    unknown = begin(folder, "unknown", age_seconds=600, lock=False)
    ancient = begin(folder, "ancient", age_seconds=3 * DAY_SECONDS, lock=False)
    with open(written / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        SampleCache(folder)
    assert [path.exists() for path in (killed, young, written, unknown, ancient)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_what_is_being_written_is_locked(folder):
    def build(target: Path) -> dict:
        os.utime(target, (0, 0))
        SampleCache(folder)
        return Builder()(target)

    assert get(folder, build)[0] == [7, 8, 9]


def test_entries_that_nobody_uses_are_removed(folder):
    for key in ("old", "used"):
        get(folder, Builder(), key)
        os.utime(folder / "data" / key / "entry.json", (time.time() - 31 * DAY_SECONDS,) * 2)
    os.utime(folder / "data" / "used" / "entry.json", (time.time() - 29 * DAY_SECONDS,) * 2)
    SampleCache(folder)
    assert names_in(folder) == ["used"]
    # Using it keeps it for longer.
    get(folder, Builder(), "used")
    assert time.time() - (folder / "data" / "used" / "entry.json").stat().st_mtime < DAY_SECONDS


def test_others_may_read_what_the_umask_lets_them(folder):
    before = os.umask(0o022)
    try:
        get(folder, Builder())
    finally:
        os.umask(before)
    entry = folder / "data" / KEY
    assert [path.stat().st_mode & 0o777 for path in (entry, entry / IDS_NAME)] == [0o755, 0o644]


def test_keys(monkeypatch):
    parts = {"contents": ["a", "b"], "options": {"max_length": 8}, "system": "\ud800"}
    key = make_key(parts)
    assert len(key) == 64 and make_key(dict(reversed(parts.items()))) == key
    others = [{"contents": ["b", "a"]}, {"options": {"max_length": 9}}, {"system": None}, {"more": 1}]
    assert len({key, *(make_key(parts | other) for other in others)}) == 5
    monkeypatch.setattr(cache_module, "_hash_code", lambda: "other code")
    assert make_key(parts) != key


def test_code_counts(tmp_path, monkeypatch):
    """All of the package's own sources do, those in folders below it too."""
    (tmp_path / "chat").mkdir()
    (tmp_path / "prepared").mkdir()
    names = ("prepared/cache.py", "prepare.py", "chat/masks.py", "maps.yaml", "chat/own.jinja")
    hashes = []
    for name in names:
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "prepared" / "cache.py"))
    for name in (None, *names):
        if name:
            (tmp_path / name).write_text("2")
        hashes.append(cache_module._hash_code.__wrapped__())
    assert len(set(hashes)) == 6


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PYFT_CACHE_DIR", "somewhere")
    assert cache_folder("/given") == Path("/given")
    assert cache_folder(None) == Path.cwd() / "somewhere"
    monkeypatch.delenv("PYFT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "pyft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "pyft"
