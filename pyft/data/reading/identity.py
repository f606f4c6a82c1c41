"""What a data file is identified by: its contents."""

from __future__ import annotations

import hashlib

from pyft.data.reading.source_file import DataFile, describe_os_error
from pyft.errors import DataError

_STREAM_ID_BYTES = 1 << 20


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(describe_os_error(path, error)) from error


def content_id(file: DataFile) -> str:
    """Identify the rows of a file: its SHA-256, or a hub data set's name, split and revision."""
    if file.kind == "hub":
        from pyft.data.reading.hub import revision

        return f"{file.path} {file.name or ''} {file.split} {revision(file)}"
    return hash_file(file.path)


def stream_id(file: DataFile) -> str:
    """Identify a file too large to read twice: its size and the SHA-256 of its first and last MiB."""
    if file.kind == "hub":
        return content_id(file)
    try:
        with open(file.path, "rb") as stream:
            digest = hashlib.sha256(stream.read(_STREAM_ID_BYTES))
            stream.seek(max(0, file.size_bytes - _STREAM_ID_BYTES))
            digest.update(stream.read(_STREAM_ID_BYTES))
    except OSError as error:
        raise DataError(describe_os_error(file.path, error)) from error
    return f"{file.size_bytes} {digest.hexdigest()}"
