"""The files that a source of a recipe names.

    path             one file; .gz and .zst are unpacked while reading (parquet and arrow compress themselves)
    folder           all files of known kinds below it, in the order of their paths
    pattern          a glob, `**` for any number of folders; the same
    hf://owner/name  a data set of the Hugging Face hub (hub.py)

What is skipped (files of unknown kinds, hidden ones) is named in a note; a source without any file is an
error. The files are opened in source_file.py and read in chunks.py.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pyft.config.schema import HUB_PREFIX, DataSource
from pyft.data.reading.source_file import Compression, DataFile, Kind, describe_os_error
from pyft.errors import DataError

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "txt",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_UNPACKED_KINDS = ("parquet", "arrow")
# What `datasets` writes beside the rows of a saved data set.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def expand_source(source: DataSource) -> tuple[list[DataFile], list[str]]:
    """List the files of a source in the order in which they are read, and notes of what was skipped.

    A source with nothing that can be read raises DataError.
    """
    path = source.path
    if path.startswith(HUB_PREFIX):
        return [DataFile(path, "hub", name=source.name, split=source.split)], []
    try:
        if os.path.isdir(path):
            found = sorted(_walk(path), key=lambda name: Path(name).parts)
            return _choose(path, found, "the folder holds")
        if os.path.lexists(path) or not glob.has_magic(path):
            return [_data_file(path)], []
        matches = sorted(glob.glob(_escape_folders(path), recursive=True), key=lambda name: Path(name).parts)
    except OSError as error:
        raise DataError(describe_os_error(error.filename or path, error)) from error
    matches = [name for name in matches if not os.path.isdir(name)]
    if not matches:
        raise DataError(
            f"{path}: no file matches the pattern: check it (it is relative to the current folder; ** stands "
            "for any number of folders)"
        )
    return _choose(path, matches, "the pattern matches")


def _escape_folders(pattern: str) -> str:
    """Take the names of existing folders literally, brackets and all; wildcards come after them."""
    first, *parts = Path(pattern).parts
    while parts and os.path.isdir(os.path.join(first, parts[0])):
        first = os.path.join(first, parts.pop(0))
    return os.path.join(glob.escape(first), *parts)


def _walk(folder: str) -> Iterator[str]:
    """Yield every file below a folder; one that links reach twice is read once."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(parent, name) for name in names)


def _choose(path: str, found: list[str], holds: str) -> tuple[list[DataFile], list[str]]:
    """Keep the files of known kinds, but not hidden ones or those that only describe others."""
    kept, passed_over = [], []
    for name in found:
        inner = os.path.relpath(name, path) if os.path.isdir(path) else os.path.basename(name)
        hidden = any(part.startswith(".") for part in Path(inner).parts)
        readable = _kind_of(name) is not None and os.path.basename(name) not in _DESCRIPTIONS
        if hidden or not readable:
            passed_over.append(inner)
        else:
            kept.append(_data_file(name))
    if not kept:
        raise DataError(
            f"{path}: {holds} {len(found)} files, none of a kind that can be read ({_list_kinds()}): name "
            "files of these kinds"
        )
    if not passed_over:
        return kept, []
    names = ", ".join(passed_over[:3]) + (", .." if len(passed_over) > 3 else "")
    counted = f"{len(passed_over)} other file{'s' if len(passed_over) > 1 else ''}"
    return kept, [f"{path}: {len(kept)} files read; {counted} skipped ({names})"]


def _data_file(path: str) -> DataFile:
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(path)
    kind = _kind_of(path)
    if kind is None:
        raise DataError(
            f"{path}: files ending in {Path(path).suffix.lower() or 'nothing'!r} are not read: convert it to "
            f"one of {_list_kinds()}"
        )
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{path}: is not a regular file, and data are read more than once: save them as one")
    return DataFile(path, kind[0], kind[1], state.st_size)


def _kind_of(path: str) -> tuple[Kind, Compression | None] | None:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    kind = KINDS.get(suffixes[-1]) if suffixes else None
    return None if kind is None or (compression and kind in _UNPACKED_KINDS) else (kind, compression)


def _list_kinds() -> str:
    return f"{', '.join(KINDS)}; all but parquet and arrow also with {' or '.join(COMPRESSIONS)} after it"
