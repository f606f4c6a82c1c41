"""Samples on disk: what was written comes back, and nothing else does."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoded import Encoded, as_lists

from pyft.data.prepared.chunk import EncodedChunk
from pyft.data.prepared.selection import Selection
from pyft.data.prepared.store import (
    CUT_TEXT_NAME,
    IDS_NAME,
    INDEX_NAME,
    LABELS_NAME,
    STORE_NAMES,
    SampleStore,
    StoreWriter,
)
from pyft.errors import DataError


def make_chunk(rng: random.Random, num_rows: int) -> tuple[EncodedChunk, list[Encoded]]:
    """A chunk of rows with one to three samples, row n on line 1000 + n, and the samples with their line."""
    samples, rows = [], []
    for row in range(num_rows):
        for _ in range(rng.randint(1, 3)):
            ids = [rng.randrange(100_000) for _ in range(rng.randint(1, 40))]
            labels = [token if rng.random() < 0.5 else -100 for token in ids]
            samples.append(Encoded(ids, labels, str(1000 + row)))
            rows.append(row)
    return EncodedChunk(
        ids=np.array([token for sample in samples for token in sample.input_ids], np.int32),
        labels=np.array([label for sample in samples for label in sample.labels], np.int32),
        lengths=np.array([len(sample.input_ids) for sample in samples], np.int32),
        trained=np.array([sample.num_trained for sample in samples], np.int32),
        targets=np.array([sample.num_trained - (sample.labels[0] >= 0) for sample in samples], np.int32),
        rows=np.array(rows, np.int32),
        numbers=np.arange(1000, 1000 + num_rows),
        digests=np.array([[rng.randrange(256) for _ in range(16)] for _ in samples], np.uint8),
        row_digests=np.array([[row] * 16 for row in range(num_rows)], np.uint8),
        cut_texts={0: "cut 世界", len(samples) - 1: "the end"},
    ), samples


def write(folder, chunks: list[EncodedChunk]) -> None:
    folder.mkdir()
    writer = StoreWriter(folder)
    for number, chunk in enumerate(chunks):
        writer.add(chunk, number % 2)
    writer.close()


def read(store: SampleStore | Selection, indices: Iterable[int]) -> list[Encoded]:
    return [as_lists(store[index], store.source(index)) for index in indices]


@pytest.fixture
def made(tmp_path):
    rng = random.Random(0)
    chunks, samples = zip(*(make_chunk(rng, count) for count in (100, 1, 37, 64)), strict=True)
    write(tmp_path / "store", list(chunks))
    return tmp_path / "store", chunks, samples


def test_everything_comes_back(made):
    folder, chunks, samples = made
    store = SampleStore(folder, ["a.jsonl", "b.jsonl"])
    expected = [
        Encoded(sample.input_ids, sample.labels, f"{'ab'[number % 2]}.jsonl:{sample.text}")
        for number, part in enumerate(samples)
        for sample in part
    ]
    assert len(store) == len(expected) > 300
    assert read(store, range(len(store))) == expected
    assert list(map(as_lists, store)) == [as_lists(store[index]) for index in range(len(store))]
    order = list(range(len(store)))
    random.Random(1).shuffle(order)
    assert read(store, order) == [expected[index] for index in order]
    assert read(store, [-1]) == expected[-1:]
    with pytest.raises(IndexError):
        store[len(store)]
    assert store.lengths.tolist() == [len(sample.input_ids) for sample in expected]
    assert store.trained.tolist() == [sample.num_trained for sample in expected]
    assert store.targets.tolist() == np.concatenate([chunk.targets for chunk in chunks]).tolist()
    assert np.array_equal(store.digests, np.concatenate([chunk.digests for chunk in chunks]))
    assert np.array_equal(store.row_digests, np.concatenate([chunk.row_digests for chunk in chunks]))
    # Rows are numbered through all chunks.
    firsts = [0, 100, 101, 138]
    rows = [row + first for chunk, first in zip(chunks, firsts, strict=True) for row in chunk.rows.tolist()]
    assert store.rows.tolist() == rows
    assert [store.cut_text(0), store.cut_text(1), store.cut_text(len(store) - 1)] == [
        "cut 世界",
        "",
        "the end",
    ]


def test_equal_samples_make_equal_files(made, tmp_path):
    folder, chunks, _ = made
    write(tmp_path / "again", list(chunks))
    for name in STORE_NAMES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_store_without_samples(tmp_path):
    write(tmp_path / "empty", [EncodedChunk()])
    store = SampleStore(tmp_path / "empty", [])
    assert (len(store), list(store), len(store.lengths), len(store.row_digests)) == (0, [], 0, 0)


def test_samples_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    write(tmp_path / "store", [make_chunk(random.Random(number), 3)[0] for number in range(60)])
    store = SampleStore(tmp_path / "store", ["a", "b"])
    sizes, pread = [], os.pread

    def record(descriptor: int, length: int, offset: int) -> bytes:
        sizes.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", record)
    assert len(store[17]) == store.lengths[17]
    assert sizes == [4 * store.lengths[17]] * 2


def test_samples_beyond_two_gigabytes(tmp_path):
    """A sample behind 2.4 billion tokens, which sparse files hold for nothing: no offset may be 32 bits."""
    chunk, (*_, expected) = make_chunk(random.Random(0), 1)
    folder, before = tmp_path / "store", np.array([1_200_000_000] * 2, np.int32)
    write(folder, [chunk])
    with np.load(folder / INDEX_NAME) as index:
        columns = {name: np.concatenate((np.repeat(index[name][:1], 2, 0), index[name])) for name in index}
    columns["length"][:2], columns["cut_length"][:2] = before, 0
    np.savez(folder / INDEX_NAME, **columns)
    for name in (IDS_NAME, LABELS_NAME):
        content = (folder / name).read_bytes()
        with open(folder / name, "wb") as file:
            file.seek(4 * int(before.sum(dtype=np.int64)))
            file.write(content)
    store = SampleStore(folder, ["a"])
    assert read(Selection([store, store]), [-1]) == [replace(expected, text=f"a:{expected.text}")]
    assert read(store, [len(store) - 1]) == [replace(expected, text=f"a:{expected.text}")]


def test_descriptors_are_closed(tmp_path):
    def num_open() -> int:
        return len(os.listdir("/dev/fd"))

    write(tmp_path / "store", [make_chunk(random.Random(0), 3)[0]])
    before = num_open()
    store = SampleStore(tmp_path / "store", ["a"])
    assert num_open() > before
    del store
    assert num_open() == before


def change(path: Path, content: np.ndarray) -> None:
    """Flip a bit where these numbers stand."""
    whole = bytearray(path.read_bytes())
    whole[whole.index(content.tobytes())] ^= 1
    path.write_bytes(whole)


DAMAGED = r"\.int32: the prepared data are damaged: delete the folder"


@pytest.mark.parametrize(("name", "column"), [(IDS_NAME, "input_ids"), (LABELS_NAME, "labels")])
def test_a_changed_number_is_never_given(made, name, column):
    folder, _, samples = made
    index = max(range(20), key=lambda index: len(samples[0][index].labels))
    change(folder / name, np.array(getattr(samples[0][index], column), np.int32))
    store = SampleStore(folder, ["a", "b"])
    for _ in range(2):
        with pytest.raises(DataError, match=DAMAGED):
            store[index]
    assert as_lists(store[len(store) - 1]).input_ids == samples[-1][-1].input_ids


def test_each_sample_is_checked_once(made, monkeypatch):
    checked, crc32 = [], zlib.crc32
    store = SampleStore(made[0], ["a", "b"])
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: checked.append(len(data)) or crc32(data, value))
    for index in (3, 4, 3, 3, 4):
        store[index]
    assert checked == [store.lengths[index] for index in (3, 3, 4, 4)]


def test_files_that_are_cut_while_they_are_read_are_told(made):
    store = SampleStore(made[0], ["a", "b"])
    store[0]
    for name in (IDS_NAME, LABELS_NAME, CUT_TEXT_NAME):
        os.truncate(made[0] / name, 3)
    for read_again in (store.__getitem__, store.cut_text):
        with pytest.raises(DataError, match="the prepared data are damaged: delete the folder"):
            read_again(0)


def test_files_of_another_size_are_no_store(made):
    with open(made[0] / LABELS_NAME, "ab") as file:
        file.write(b"1234")
    with pytest.raises(ValueError, match=r"labels\.int32 does not have the size"):
        SampleStore(made[0], ["a", "b"])
