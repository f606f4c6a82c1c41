"""Decode JSON records, a line or an array of them, saying exactly where a broken one is.

    line    one JSON value; a record that cannot be decoded does not touch its neighbours
    array   its elements are the records, numbered from 1; from a syntax error on nothing can be told apart

What a record means is not known here: that is formats.py. Nothing is guessed or repaired. A key that stands
twice in an object is an error: whichever value were kept, the other would be lost without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyft.config import DataError
from pyft.data.files import hash_file

__all__ = [
    "BOM",
    "Record",
    "check_encoding",
    "decode_array",
    "decode_json",
    "decode_line",
    "decode_utf8",
    "hash_file",
    "json_type",
]

BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_BLANK = " \t\r\n"


class Record(NamedTuple):
    """One record and where it stands: `source` is `file:line`, or `file:row`, both from 1.

    One that cannot be decoded has no value but an `error`: the whole message.
    """

    value: Any
    source: str
    error: str | None = None


class DuplicateKey(Exception):
    """Raised inside the JSON decoder, which does not know the line; the argument is the key."""


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_pairs)
_LENIENT_DECODER = json.JSONDecoder()


def decode_json(text: str) -> Any:
    """Decode one JSON value that stands in a string of a record.

    json.JSONDecodeError and DuplicateKey are raised further down.

    Args:
        text: The value, with nothing but blanks around it.

    Returns:
        It, decoded.
    """
    return _DECODER.decode(text)


def check_encoding(path: str, start: bytes) -> None:
    """Refuse UTF-16, which would otherwise fail somewhere inside.

    Args:
        path: The file, for the message.
        start: Its first bytes.

    Raises:
        DataError: It begins with UTF-16's byte order mark.
    """
    if start.startswith(_UTF16_BOMS):
        raise DataError(f"{path}:1:1: the file is UTF-16, not UTF-8: save the file as UTF-8")


def decode_utf8(raw: bytes, path: str, line: int) -> str:
    """Decode text.

    Args:
        raw: The bytes.
        path: Their file, for the message.
        line: The number of the first line in them.

    Returns:
        The text.

    Raises:
        DataError: They are not UTF-8; with the line, and the column in bytes.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        at_line = line + before.count(b"\n")
        at_byte = error.start - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{path}:{at_line}:{at_byte}: byte 0x{raw[error.start]:02x} is not UTF-8 (the column counts "
            "bytes): save the file as UTF-8"
        ) from error


def decode_line(raw: bytes, path: str, number: int, *, ended: bool = True) -> Record:
    """Decode one line of JSON.

    Args:
        raw: The line without its end; not blank.
        path: Its file.
        number: Its number, from 1.
        ended: Whether a newline stands behind it; the last line without one may be cut.

    Returns:
        The record, or what is wrong with it.
    """
    source = f"{path}:{number}"
    try:
        text = raw.decode()
        value, end = _DECODER.scan_once(text, 0)
        if end == len(text) or not text[end:].strip(_BLANK):
            return Record(value, source)
    except (ValueError, StopIteration, RecursionError, DuplicateKey):
        pass
    # Blanks before the value, or something wrong, whose place the slow way finds.
    try:
        return Record(_parse_line(decode_utf8(raw, path, number), source, number, ended), source)
    except DataError as error:
        return Record(None, source, str(error))


def _parse_line(text: str, source: str, number: int, ended: bool) -> Any:
    try:
        start = len(text) - len(text.lstrip(_BLANK))
        value, end = _decode_value(text, start, source)
        if text[end:].strip(_BLANK):
            raise json.JSONDecodeError("a second value on the line", text, end)
        return value
    except json.JSONDecodeError as error:
        where = f"{source}:{error.pos + 1}"
        if not ended:
            raise DataError(
                f"{where}: the last line is cut ({error.msg}): the file ends inside a record; write the file "
                "again or delete this line"
            ) from error
        if number == 1 and text.strip(_BLANK) in ("[", "{"):
            raise DataError(
                f"{where}: the record goes on over several lines: write one record a line, or name an array "
                ".json"
            ) from error
        raise DataError(f"{where}: broken JSON ({error.msg}): mend this line; one record a line") from error


def _decode_value(text: str, start: int, source: str) -> tuple[Any, int]:
    """Decode one JSON value; its syntax errors (JSONDecodeError) are the caller's to describe."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except DuplicateKey as error:
        raise DataError(describe_duplicate_key(source, error.args[0])) from None
    except RecursionError:
        raise DataError(f"{source}: the record is nested too deeply: flatten it") from None
    except ValueError as error:
        raise DataError(f"{source}: a number cannot be read ({error}): shorten it") from None


def describe_duplicate_key(source: str, key: str) -> str:
    """Say that a key stands twice.

    Args:
        source: Where.
        key: Which.

    Returns:
        The message.
    """
    quoted = json.dumps(key, ensure_ascii=False)
    return f"{source}: the key {quoted} stands twice in one record: keep one of them"


def decode_array(raw: bytes, path: str) -> Iterator[Record]:
    """Decode the records of a JSON array.

    Args:
        raw: The whole file.
        path: Its name.

    Yields:
        Record: One for each element; none where the file is blank.

    Raises:
        DataError: It is not UTF-8, not an array, or broken at some row.
    """
    check_encoding(path, raw)
    text = decode_utf8(raw.removeprefix(BOM), path, 1)
    del raw
    start = _skip_blanks(text, 0)
    if start == len(text):
        return
    if text[start] != "[":
        raise DataError(_describe_no_array(path, text, start))
    position = _skip_blanks(text, start + 1)
    row = 0
    while text[position : position + 1] != "]":
        row += 1
        record, position = _decode_element(text, position, path, row)
        yield record
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


def _decode_element(text: str, start: int, path: str, row: int) -> tuple[Record, int]:
    source = f"{path}:{row}"
    try:
        value, end = _decode_value(text, start, source)
        return Record(value, source), end
    except json.JSONDecodeError as error:
        raise DataError(_describe_array_error(path, text, error.pos, error.msg, row)) from error
    except DataError as error:
        try:
            _, end = _LENIENT_DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            raise error from None
        # Only a key stands twice: where the element ends is known, so the others can still be read.
        return Record(None, source, str(error)), end


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
                f"{json.dumps(key, ensure_ascii=False)}: save that list itself as the file"
            )
    return f"{where}: the file holds one object, not an array of rows: put it in [ ]"


def json_type(value: Any) -> str:
    """Name the type of a decoded value, for messages.

    Args:
        value: What the decoder of a file gave.

    Returns:
        It with its article: `a string`, `an object`; or `null`, `true or false`.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    # Parquet and arrow have more types than JSON.
    return names.get(type(value), f"of type {type(value).__name__}")
