"""JSON logs: flushed, cut to whole rows, whole on a full disk too."""

from __future__ import annotations

import errno
import json
import os

import pytest

from pyft.errors import DiskError
from pyft.run.log import JsonLog, read_rows


def test_log_writes_null_for_what_is_not_finite(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    log.write({"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "世界", "e": "\ud800"})
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text)["a"] is None and json.loads(text)["b"] is None and "世界" in text
    assert read_rows(tmp_path / "log.jsonl")[0]["c"] == 1.5 and read_rows(tmp_path / "absent") == []


def test_log_is_flushed_row_by_row_and_cut_to_whole_rows(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    sizes = []
    for step in range(3):
        log.write({"step": step})
        assert len(read_rows(path)) == step + 1
        sizes.append(log.size_bytes)
    assert log.cut(sizes[1]) and len(read_rows(path)) == 2
    log.write({"step": 9})
    assert [row["step"] for row in read_rows(path)] == [0, 1, 9]
    assert not log.cut(sizes[0] + 3) and [row["step"] for row in read_rows(path)] == [0]
    assert not log.cut(10_000) and len(read_rows(path)) == 1
    assert log.cut(0) and path.read_bytes() == b""
    log.close()


def test_log_on_a_full_disk_keeps_whole_rows(tmp_path, monkeypatch):
    log = JsonLog(tmp_path / "log.jsonl")
    log.write({"step": 1})
    real = os.write

    def short_then_full(descriptor, data):
        if len(data) > 5:
            return real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(DiskError, match=r"log\.jsonl"):
        log.write({"a": 1})
    monkeypatch.undo()
    assert read_rows(tmp_path / "log.jsonl") == [{"step": 1}]
    log.close()
