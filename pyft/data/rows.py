"""Read records out of .jsonl, .json and .txt files, saying exactly where a broken one is.

    .jsonl   one JSON value a line; only "\\n" ends a line (a "\\r" before it is dropped); blanks are skipped
    .json    one array, whose elements are the records; numbered from 1
    .txt     the whole file is one document

What a record means is not known here: that is formats.py. Nothing is guessed or repaired: a file that
cannot be read to its end raises a DataError `file:line:column: what: how to mend it`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyft.config import DataError

SUFFIXES = (".jsonl", ".json", ".txt")
_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"


class Record(NamedTuple):
    """One record and where it stands: `source` is `file:line` (array: `file:row`), both from 1."""

    value: Any
    source: str


class _DuplicateKey(Exception):
    """Raised inside the JSON decoder, which does not know the line."""


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_pairs)


def _decode_value(text: str, start: int, where: str) -> tuple[Any, int]:
    """Decode one JSON value; its syntax errors (JSONDecodeError) are the caller's to describe."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except _DuplicateKey as error:
        key = json.dumps(error.args[0], ensure_ascii=False)
        raise DataError(f"{where}: the key {key} stands twice in one record: keep one of them") from None
    except RecursionError:
        raise DataError(f"{where}: the record is nested too deeply: flatten it") from None
    except ValueError as error:
        raise DataError(f"{where}: a number cannot be read ({error}): shorten it") from None


def read_records(path: str) -> Iterator[Record]:
    """Yield the records of one file in file order.

    Args:
        path: A .jsonl, .json or .txt file.

    Yields:
        Record: The decoded value and its source.

    Raises:
        DataError: The file is absent, a folder, unreadable, empty, not UTF-8, or broken at some line.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES and not Path(path).is_dir():
        kinds = ", ".join(SUFFIXES)
        raise DataError(
            f"{path}: files ending in {suffix or 'nothing'!r} are not read: convert it to one of {kinds}"
        )
    reader = {".json": _read_array, ".txt": _read_document}.get(suffix, _read_lines)
    found = False
    try:
        for record in reader(path):
            found = True
            yield record
    except OSError as error:
        raise DataError(_describe_os_error(path, error)) from error
    if not found:
        raise DataError(f"{path}: the file is empty: give it at least one row, or take it out of the recipe")


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
        raise DataError(_describe_os_error(path, error)) from error


def _describe_os_error(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file: check the path (it is relative to the current folder)"
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a folder: name the files in it, one entry under data.train each"
    if isinstance(error, PermissionError):
        return f"{path}: may not be read ({error.strerror}): give this user the right to read it"
    return f"{path}: cannot be read ({error.strerror or error}): check the disk and the path"


def _decode(raw: bytes, path: str, line: int) -> str:
    """Decode UTF-8; `line` is the number of the first line in `raw`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        at_line = line + before.count(b"\n")
        at_byte = error.start - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{path}:{at_line}:{at_byte}: byte 0x{raw[error.start]:02x} is not UTF-8 (the column counts "
            "bytes): "
            "save the file as UTF-8"
        ) from error


def _read_lines(path: str) -> Iterator[Record]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            text = _decode(raw, path, number)
            whole = text.endswith("\n")
            text = text.removesuffix("\n").removesuffix("\r")
            if not text.strip(_BLANK):
                continue
            yield Record(_parse_line(text, path, number, whole), f"{path}:{number}")


def _parse_line(text: str, path: str, number: int, whole: bool) -> Any:
    try:
        start = len(text) - len(text.lstrip(_BLANK))
        value, end = _decode_value(text, start, f"{path}:{number}")
        if text[end:].strip(_BLANK):
            raise json.JSONDecodeError("a second value on the line", text, end)
        return value
    except json.JSONDecodeError as error:
        where = f"{path}:{number}:{error.pos + 1}"
        if not whole:
            raise DataError(
                f"{where}: the last line is cut ({error.msg}): the file ends inside a record; write the "
                "file again "
                "or delete this line"
            ) from error
        if number == 1 and text.strip(_BLANK) in ("[", "{"):
            raise DataError(
                f"{where}: the record goes on over several lines: write one record a line, or name an "
                "array .json"
            ) from error
        raise DataError(f"{where}: broken JSON ({error.msg}): mend this line; one record a line") from error


def _read_array(path: str) -> Iterator[Record]:
    text = _decode(Path(path).read_bytes().removeprefix(_BOM), path, 1)
    start = _skip_blanks(text, 0)
    if start == len(text):
        return
    if text[start] != "[":
        raise DataError(_describe_no_array(path, text, start))
    position = _skip_blanks(text, start + 1)
    row = 0
    while text[position : position + 1] != "]":
        row += 1
        try:
            value, position = _decode_value(text, position, f"{path}:{row}")
        except json.JSONDecodeError as error:
            raise DataError(_describe_array_error(path, text, error.pos, error.msg, row)) from error
        yield Record(value, f"{path}:{row}")
        position = _skip_blanks(text, position)
        follows = text[position : position + 1]
        if follows == ",":
            position = _skip_blanks(text, position + 1)
            if text[position : position + 1] == "]":
                message = "a comma before the closing ]"
                raise DataError(_describe_array_error(path, text, position, message, row))
        elif follows != "]":
            raise DataError(_describe_array_error(path, text, position, "Expecting ',' or ']'", row))
    end = _skip_blanks(text, position + 1)
    if end != len(text):
        raise DataError(_describe_array_error(path, text, end, "text after the closing ]", row))


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _describe_array_error(path: str, text: str, position: int, message: str, row: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    where = f"{path}:{line}:{column}"
    if position >= len(text):
        return f"{where}: the file is cut in row {row} ({message}): it ends too early; write it again"
    return f"{where}: broken JSON in row {row} ({message}): mend it there"


def _describe_no_array(path: str, text: str, start: int) -> str:
    line = text.count("\n", 0, start) + 1
    where = f"{path}:{line}:{start - text.rfind(chr(10), 0, start)}"
    try:
        value, end = _decode_value(text, start, where)
    except json.JSONDecodeError as error:
        return _describe_array_error(path, text, error.pos, error.msg, 1)
    if not isinstance(value, dict):
        return f"{where}: the file holds {json_type(value)}, not an array of rows: write [row, row, ...]"
    if text[end:].strip(_BLANK):
        return f"{where}: the file holds one record after another, not an array: name it .jsonl"
    for key, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict | list):
            return (
                f"{where}: the rows are wrapped in an object, under the key "
                f"{json.dumps(key, ensure_ascii=False)}: "
                "save that list itself as the file"
            )
    return f"{where}: the file holds one object, not an array of rows: put it in [ ]"


def json_type(value: Any) -> str:
    """Name the JSON type of a decoded value, for messages.

    Args:
        value: What the JSON decoder gave.

    Returns:
        It with its article: `a string`, `an object`; or `null`, `true or false`.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def _read_document(path: str) -> Iterator[Record]:
    text = _decode(Path(path).read_bytes().removeprefix(_BOM), path, 1).replace("\r\n", "\n")
    if not text.strip():
        return
    position = text.find("\0")
    if position >= 0:
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path}:{line}: the text holds a NUL character: this is no text file, or delete it there"
        )
    yield Record({"text": text}, f"{path}:1")
