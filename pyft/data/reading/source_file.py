"""One data file: what kind it is, and opening it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

Kind = Literal["jsonl", "json", "txt", "csv", "parquet", "arrow", "hub"]
Compression = Literal["gzip", "zstd"]


@dataclass(frozen=True)
class DataFile:
    """One file of rows. On the hub `path` is `hf://owner/name`; `name` and `split` are for it only."""

    path: str
    kind: Kind
    compression: Compression | None = None
    size_bytes: int = 0
    name: str | None = None
    split: str = "train"


def open_file(file: DataFile) -> BinaryIO | Any:
    """Open a file of this machine to read its bytes, unpacked; a damaged one raises OSError."""
    if file.compression is None:
        return open(file.path, "rb")
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(file.path), file.compression)


def describe_os_error(path: str, error: OSError) -> str:
    """Say why a file cannot be read: `file: what: how to fix it`."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file: check the path (it is relative to the current folder)"
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a folder: name the files in it"
    if isinstance(error, PermissionError):
        return f"{path}: cannot be read ({error.strerror}): give this user permission to read it"
    return f"{path}: cannot be read ({error.strerror or error}): check the disk and the path"
