"""Samples on disk: what was written comes back, and nothing else does."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pyft.data.encode.sample import Sample
from pyft.data.prepared.chunk import EncodedChunk
from pyft.data.prepared.store import INDEX_NAME, SAMPLES_NAME, SampleStore, StoreWriter
from pyft.errors import DataError


def make_chunk(rng: random.Random, num_rows: int) -> tuple[EncodedChunk, list[Sample]]:
    """A chunk of rows with one to three samples, and the samples with their line for a source."""
    samples, rows = [], []
    for row in range(num_rows):
        for _ in range(rng.randint(1, 3)):
            ids = [rng.randrange(100_000) for _ in range(rng.randint(1, 40))]
            labels = [token if rng.random() < 0.5 else -100 for token in ids]
            samples.append(Sample(ids, labels, str(1000 + row)))
            rows.append(row)
    return EncodedChunk(
        num_records=num_rows,
        ids=np.array([token for sample in samples for token in sample.input_ids], np.int32),
        labels=np.array([label for sample in samples for label in sample.labels], np.int32),
        lengths=np.array([len(sample.input_ids) for sample in samples], np.int32),
        trained=np.array([sample.num_trained for sample in samples], np.int32),
        targets=np.array([sample.num_trained - (sample.labels[0] >= 0) for sample in samples], np.int32),
        rows=np.array(rows, np.int32),
        numbers=np.array([int(sample.source) for sample in samples], np.int64),
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
        Sample(sample.input_ids, sample.labels, f"{'ab'[number % 2]}.jsonl:{sample.source}")
        for number, part in enumerate(samples)
        for sample in part
    ]
    assert len(store) == len(expected) > 300
    assert list(store) == expected
    order = list(range(len(store)))
    random.Random(1).shuffle(order)
    assert [store[index] for index in order] == [expected[index] for index in order]
    assert store[-1] == expected[-1] and store[3:90:7] == expected[3:90:7]
    with pytest.raises(IndexError):
        store[len(store)]
    assert all(type(token) is int for token in store[0].input_ids + store[0].labels)
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
    for name in (SAMPLES_NAME, INDEX_NAME):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_store_without_samples(tmp_path):
    write(tmp_path / "empty", [EncodedChunk(num_records=3)])
    store = SampleStore(tmp_path / "empty", [])
    assert (len(store), list(store), len(store.lengths), len(store.row_digests)) == (0, [], 0, 0)


def test_few_samples_are_in_memory(tmp_path):
    write(tmp_path / "store", [make_chunk(random.Random(number), 3)[0] for number in range(60)])
    store = SampleStore(tmp_path / "store", ["a", "b"])
    list(store)
    assert 0 < len(store._kept) < len(store._first_list) == 60


def test_a_changed_id_is_never_given(made):
    folder, _, samples = made
    path = folder / SAMPLES_NAME
    content = bytearray(path.read_bytes())
    ids = np.array(samples[0][5].input_ids, np.int32).tobytes()
    content[content.index(ids)] ^= 1
    path.write_bytes(content)
    store = SampleStore(folder, ["a", "b"])
    with pytest.raises(DataError, match=r"samples\.arrow: the prepared data are damaged: delete the folder"):
        store[5]
    assert store[len(store) - 1].input_ids == samples[-1][-1].input_ids
