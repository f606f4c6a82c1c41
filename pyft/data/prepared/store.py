"""Samples on disk: written once, end to end, and read back one at a time.

    input_ids.int32   the ids of all samples          [---0---|-1-|-----2-----|..]
    labels.int32      their labels                    [---0---|-1-|-----2-----|..]
    cut_text.utf8     what was cut off their ends     (mostly nothing)
    index.npz         per sample: length, trained, targets, row, digest, CRC-32 of its ids and labels, length
                      of its cut text; per row: digest, file, line or row there

Samples are read with ordinary reads, not mapped, so that a process takes no more memory for larger files. A
sample whose CRC does not match is refused, so that changed ids are never trained on; each is checked when a
process reads it for the first time.
"""

from __future__ import annotations

import contextlib
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyft.data.encode.sample import Sample
from pyft.data.prepared.chunk import DIGEST_BYTES, EncodedChunk
from pyft.errors import DataError

IDS_NAME = "input_ids.int32"
LABELS_NAME = "labels.int32"
CUT_TEXT_NAME = "cut_text.utf8"
INDEX_NAME = "index.npz"
STORE_NAMES = (IDS_NAME, LABELS_NAME, CUT_TEXT_NAME, INDEX_NAME)
# name -> type and further axes
_COLUMNS = {
    "length": (np.int32, ()),
    "trained": (np.int32, ()),
    "targets": (np.int32, ()),
    "row": (np.int64, ()),
    "digest": (np.uint8, (DIGEST_BYTES,)),
    "crc": (np.uint32, ()),
    "cut_length": (np.int64, ()),
    "row_digest": (np.uint8, (DIGEST_BYTES,)),
    "row_file": (np.int32, ()),
    "row_number": (np.int64, ()),
}


class StoreWriter:
    """Writes the samples of chunks, in order, into an existing, empty folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self._num_rows = 0
        with contextlib.ExitStack() as opened:
            names = (IDS_NAME, LABELS_NAME, CUT_TEXT_NAME)
            self._files = [opened.enter_context(open(folder / name, "wb")) for name in names]
            self._opened = opened.pop_all()

    def add(self, chunk: EncodedChunk, file: int) -> None:
        """Append the samples of a chunk of file number `file`."""
        num_samples, num_rows = len(chunk.lengths), len(chunk.numbers)
        if not num_samples:
            return
        cut_texts = [chunk.cut_texts.get(index, "").encode() for index in range(num_samples)]
        for stream, content in zip(self._files, (chunk.ids, chunk.labels, b"".join(cut_texts)), strict=True):
            stream.write(content)
        bounds = np.cumsum(chunk.lengths, dtype=np.int64)[:-1]
        samples = zip(np.split(chunk.ids, bounds), np.split(chunk.labels, bounds), strict=True)
        columns = {
            "length": chunk.lengths,
            "trained": chunk.trained,
            "targets": chunk.targets,
            "row": chunk.rows.astype(np.int64) + self._num_rows,
            "digest": chunk.digests,
            "crc": np.array([_crc(ids, labels) for ids, labels in samples], np.uint32),
            "cut_length": np.array([len(text) for text in cut_texts], np.int64),
            "row_digest": chunk.row_digests,
            "row_file": np.full(num_rows, file, np.int32),
            "row_number": chunk.numbers,
        }
        for name, values in columns.items():
            self._parts[name].append(values)
        self._num_rows += num_rows

    def close(self) -> None:
        """Write the index and end the files; what is written is on the disk then, but not yet synced."""
        self.abandon()
        arrays = {
            name: np.concatenate(parts) if (parts := self._parts[name]) else np.empty((0, *axes), dtype)
            for name, (dtype, axes) in _COLUMNS.items()
        }
        np.savez(self._folder / INDEX_NAME, **arrays)

    def abandon(self) -> None:
        """Close the files, without an index."""
        self._opened.close()


def _crc(ids: np.ndarray, labels: np.ndarray) -> int:
    return zlib.crc32(labels, zlib.crc32(ids))


class SampleStore(Sequence[Sample]):
    """The samples of a store, read when they are asked for, and their index in memory.

    `lengths`, `trained` and `targets` int32 [samples], `rows` int64 [samples], `digests` uint8 [samples, 16],
    `row_digests` uint8 [rows, 16]: see EncodedChunk, rows numbered through all chunks.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        """Open what StoreWriter wrote; `paths` are the names of the files it was made of, for `source`.

        ValueError if the files are not what StoreWriter writes.
        """
        self._folder, self._paths = folder, paths
        with np.load(folder / INDEX_NAME, allow_pickle=False) as index:
            arrays = {name: index[name] for name in _COLUMNS}
        self.lengths, self.trained, self.targets = arrays["length"], arrays["trained"], arrays["targets"]
        self.rows, self.digests, self.row_digests = arrays["row"], arrays["digest"], arrays["row_digest"]
        self._row_files, self._row_numbers, self._crcs = (
            arrays["row_file"],
            arrays["row_number"],
            arrays["crc"],
        )
        self._bounds = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        self._cut_bounds = np.concatenate(([0], np.cumsum(arrays["cut_length"])))
        self._is_checked = np.zeros(len(self), bool)
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close, self._descriptors)
        num_bytes = int(self._bounds[-1]) * 4
        sizes = {IDS_NAME: num_bytes, LABELS_NAME: num_bytes, CUT_TEXT_NAME: int(self._cut_bounds[-1])}
        for name, size in sizes.items():
            self._descriptors[name] = os.open(folder / name, os.O_RDONLY)
            if os.fstat(self._descriptors[name]).st_size != size:
                raise ValueError(f"{folder / name} does not have the size that the index gives")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = index % len(self)
        begin, end = int(self._bounds[index]) * 4, int(self._bounds[index + 1]) * 4
        ids, labels = (
            np.frombuffer(self._read(name, begin, end), np.int32) for name in (IDS_NAME, LABELS_NAME)
        )
        if not self._is_checked[index]:
            if _crc(ids, labels) != self._crcs[index]:
                raise self._damage(IDS_NAME)
            self._is_checked[index] = True
        return Sample(ids, labels)

    def source(self, index: int) -> str:
        """Say which row a sample is of: `file:line`, or `file:row`."""
        row = self.rows[index]
        return f"{self._paths[self._row_files[row]]}:{self._row_numbers[row]}"

    def cut_text(self, index: int) -> str:
        """Read what was cut off a sample's end, mostly nothing."""
        begin, end = int(self._cut_bounds[index]), int(self._cut_bounds[index + 1])
        try:
            return self._read(CUT_TEXT_NAME, begin, end).decode()
        except UnicodeDecodeError:
            raise self._damage(CUT_TEXT_NAME) from None

    def _read(self, name: str, begin: int, end: int) -> bytes:
        try:
            content = os.pread(self._descriptors[name], end - begin, begin)
        except OSError as error:
            raise self._damage(name) from error
        if len(content) < end - begin:
            raise self._damage(name)
        return content

    def _damage(self, name: str) -> DataError:
        return DataError(
            f"{self._folder / name}: the prepared data are damaged: delete the folder, and they are made "
            "again"
        )


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
