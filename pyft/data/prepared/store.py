"""Samples on disk: written once in small Arrow record batches, read back one at a time.

    samples.arrow   Arrow IPC file: input_ids, labels (lists of int32), source number (int64), text cut off
    index.npz       per sample: length, trained, targets, row, file, digest; per row: digest; per batch: its
                    first sample and a CRC-32 of its ids and labels

Samples are read with ordinary reads, not mapped: the memory of a process stays what it holds itself, however
large the file is. A record batch whose CRC does not fit is refused: changed ids are never trained on.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from pyft.data.encode.sample import Sample
from pyft.data.prepared.chunk import DIGEST_BYTES, EncodedChunk
from pyft.errors import DataError

SAMPLES_NAME = "samples.arrow"
INDEX_NAME = "index.npz"
_SAMPLES_PER_BATCH = 64
_BATCHES_KEPT = 16
_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("cut_text", pa.string(), nullable=False),
    ]
)
# name -> type and further axes; "first" and "crc" are per record batch, "row_digest" is per row
_COLUMNS = {
    "length": (np.int32, ()),
    "trained": (np.int32, ()),
    "targets": (np.int32, ()),
    "row": (np.int64, ()),
    "file_number": (np.int32, ()),
    "digest": (np.uint8, (DIGEST_BYTES,)),
    "row_digest": (np.uint8, (DIGEST_BYTES,)),
    "first": (np.int64, ()),
    "crc": (np.uint32, ()),
}


class StoreWriter:
    """Writes the samples of chunks, in order."""

    def __init__(self, folder: Path) -> None:
        """Begin a store.

        Args:
            folder: An existing, empty folder.
        """
        self._folder = folder
        self._file = pa.OSFile(str(folder / SAMPLES_NAME), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self._num_samples = self._num_rows = 0

    def add(self, chunk: EncodedChunk, file: int) -> None:
        """Append the samples of a chunk.

        Args:
            chunk: What the encoder gave.
            file: Number of the file it is of.
        """
        num_samples = len(chunk.lengths)
        if not num_samples:
            return
        bounds = np.concatenate(([0], np.cumsum(chunk.lengths, dtype=np.int64)))
        for begin in range(0, num_samples, _SAMPLES_PER_BATCH):
            end = min(begin + _SAMPLES_PER_BATCH, num_samples)
            self._write(chunk, begin, end, bounds)
        columns = {
            "length": chunk.lengths,
            "trained": chunk.trained,
            "targets": chunk.targets,
            "row": chunk.rows.astype(np.int64) + self._num_rows,
            "file_number": np.full(num_samples, file, np.int32),
            "digest": chunk.digests,
            "row_digest": chunk.row_digests,
        }
        for name, values in columns.items():
            self._parts[name].append(values)
        self._num_samples += num_samples
        self._num_rows += len(chunk.row_digests)

    def _write(self, chunk: EncodedChunk, begin: int, end: int, bounds: np.ndarray) -> None:
        first, last = bounds[begin], bounds[end]
        offsets = pa.array((bounds[begin : end + 1] - first).astype(np.int32))
        ids, labels = chunk.ids[first:last], chunk.labels[first:last]
        cut_texts = [chunk.cut_texts.get(index, "") for index in range(begin, end)]
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(labels)),
            pa.array(chunk.numbers[begin:end]),
            pa.array(cut_texts, pa.string()),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._parts["first"].append(np.array([self._num_samples + begin], np.int64))
        self._parts["crc"].append(np.array([_crc(ids, labels)], np.uint32))

    def close(self) -> None:
        """Write the index and end the files; what is written is on the disk then, but not yet synced."""
        self._writer.close()
        self._file.close()
        arrays = {
            name: np.concatenate(parts) if (parts := self._parts[name]) else np.empty((0, *axes), dtype)
            for name, (dtype, axes) in _COLUMNS.items()
        }
        np.savez(self._folder / INDEX_NAME, **arrays)

    def abandon(self) -> None:
        """Close the file of a store that will not be used."""
        self._file.close()


def _crc(ids: np.ndarray, labels: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(labels), zlib.crc32(np.ascontiguousarray(ids)))


class SampleStore(Sequence[Sample]):
    """The samples of a store, read when they are asked for, and their index in memory."""

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        """Open a store.

        Args:
            folder: Where StoreWriter wrote.
            paths: The names of the files, for `Sample.source`.

        Raises:
            ValueError: The files are not what StoreWriter writes.
        """
        self._paths = paths
        self._path = str(folder / SAMPLES_NAME)
        with np.load(folder / INDEX_NAME, allow_pickle=False) as index:
            arrays = {name: index[name] for name in _COLUMNS}
        self.lengths, self.trained, self.targets = arrays["length"], arrays["trained"], arrays["targets"]
        self.rows, self.digests, self.row_digests = arrays["row"], arrays["digest"], arrays["row_digest"]
        self._files, self._firsts, self._crcs = arrays["file_number"], arrays["first"], arrays["crc"]
        self._first_list = self._firsts.tolist()
        self._reader = pa.ipc.open_file(pa.OSFile(self._path))
        if self._reader.num_record_batches != len(self._firsts):
            raise ValueError(f"{self._path} has not the record batches of its index")
        self._kept: OrderedDict[int, pa.RecordBatch] = OrderedDict()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Read a sample, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        batch, position = self._find(index)
        ids = batch.column(0)[position].values.to_numpy().tolist()
        labels = batch.column(1)[position].values.to_numpy().tolist()
        number = batch.column(2)[position].as_py()
        return Sample(ids, labels, f"{self._paths[self._files[index]]}:{number}")

    def cut_text(self, index: int) -> str:
        """Tell what was cut off a sample's end.

        Args:
            index: The sample's.

        Returns:
            The text, mostly empty.
        """
        batch, position = self._find(index)
        return batch.column(3)[position].as_py()

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = int(index) % len(self)
        number = bisect_right(self._first_list, index) - 1
        batch = self._kept.get(number)
        if batch is None:
            batch = self._kept[number] = self._read(number)
            if len(self._kept) > _BATCHES_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return batch, index - self._first_list[number]

    def _read(self, number: int) -> pa.RecordBatch:
        try:
            batch = self._reader.get_batch(number)
            values = [batch.column(column).flatten().to_numpy() for column in (0, 1)]
            whole = _crc(*values) == self._crcs[number]
        except (OSError, pa.ArrowException):
            whole = False
        if not whole:
            raise DataError(
                f"{self._path}: the prepared data are damaged: delete the folder, and they are made again"
            )
        return batch
