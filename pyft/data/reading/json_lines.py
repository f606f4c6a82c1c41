"""Decode records of JSON, one per line, saying exactly where a broken one is.

What a record means is decided in rows/formats.py. Nothing is guessed or repaired. A duplicate key in an
object is an error: whichever value were kept, the other would be lost silently.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pyft.errors import DataError

BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BLANK = " \t\r\n"


class Record(NamedTuple):
    """One record, and the number of its line or row in the file, from 1.

    One that cannot be decoded has no value but an `error`: the whole message.
    """

    value: Any
    number: int
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


def decode_json(text: str) -> Any:
    """Decode a JSON value written in a string of a record; may raise JSONDecodeError or DuplicateKey."""
    return _DECODER.decode(text)


def check_encoding(path: str, start: bytes) -> None:
    """Refuse UTF-16, which would otherwise fail somewhere inside the file."""
    if start.startswith(_UTF16_BOMS):
        raise DataError(f"{path}:1:1: the file is UTF-16, not UTF-8: save the file as UTF-8")


def decode_utf8(raw: bytes, path: str, line: int) -> str:
    """Decode bytes that begin on `line`; an error names the line, and the column in bytes."""
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
    """Decode a line that is not blank; the last line of a file may be cut unless a newline `ended` it."""
    try:
        text = raw.decode()
        value, end = _DECODER.scan_once(text, 0)
        if end == len(text) or not text[end:].strip(BLANK):
            return Record(value, number)
    except (ValueError, StopIteration, RecursionError, DuplicateKey):
        pass
    # Blanks before the value, or something wrong, whose place the slow way finds.
    try:
        return Record(_parse_line(decode_utf8(raw, path, number), path, number, ended), number)
    except DataError as error:
        return Record(None, number, str(error))


def _parse_line(text: str, path: str, number: int, ended: bool) -> Any:
    place = f"{path}:{number}"
    try:
        start = len(text) - len(text.lstrip(BLANK))
        value, end = decode_value(text, start, place)
        if rest := text[end:].lstrip(BLANK):
            raise json.JSONDecodeError("a second value on the line", text, len(text) - len(rest))
        return value
    except json.JSONDecodeError as error:
        where = f"{place}:{error.pos + 1}"
        if not ended:
            raise DataError(
                f"{where}: the last line is cut ({error.msg}): the file ends inside a record; write the file "
                "again or delete this line"
            ) from error
        if number == 1 and text.strip(BLANK) in ("[", "{"):
            raise DataError(
                f"{where}: the record spans several lines: write one record per line, or name an array .json"
            ) from error
        raise DataError(f"{where}: broken JSON ({error.msg}): fix this line; one record per line") from error


def decode_value(text: str, start: int, place: str) -> tuple[Any, int]:
    """Decode the JSON value at `start`; also return its end. JSONDecodeError is the caller's to explain."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except DuplicateKey as error:
        raise DataError(_describe_duplicate_key(place, error.args[0])) from None
    except RecursionError:
        raise DataError(f"{place}: the record is nested too deeply: flatten it") from None
    except ValueError as error:
        raise DataError(f"{place}: a number cannot be read ({error}): shorten it") from None


def _describe_duplicate_key(place: str, key: str) -> str:
    quoted = json.dumps(key, ensure_ascii=False)
    return f"{place}: the key {quoted} appears twice in one record: keep one of them"


def json_type(value: Any) -> str:
    """Name the type of a decoded value: `a string`, `an object`, `null`, `true or false`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    # Parquet and arrow have more types than JSON.
    return names.get(type(value), f"of type {type(value).__name__}")
