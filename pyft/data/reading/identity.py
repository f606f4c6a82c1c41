"""What a data file is known by: its contents."""

from __future__ import annotations

import hashlib

from pyft.data.reading.source_file import DataFile, describe_os_error
from pyft.errors import DataError

_STREAM_ID_BYTES = 1 << 20


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(describe_os_error(path, error)) from error


def content_id(file: DataFile) -> str:
    """Name what a file holds, so that the same name means the same rows.

    Args:
        file: A file, or a data set of the hub.

    Returns:
        The SHA-256 of a file's bytes; for the hub the data set, its configuration, split and revision.
    """
    if file.kind == "hub":
        from pyft.data.reading.hub import revision

        return f"{file.path} {file.name or ''} {file.split} {revision(file)}"
    return hash_file(file.path)


def stream_id(file: DataFile) -> str:
    """Name what a file holds without reading all of it, as a stream may be too large for that.

    Args:
        file: A file, or a data set of the hub.

    Returns:
        The size, and the SHA-256 of the first and the last MiB; for the hub what content_id gives.

    Raises:
        DataError: The file cannot be read.
    """
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
