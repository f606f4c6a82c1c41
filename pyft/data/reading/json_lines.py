"""Decode records of JSON, one a line, saying exactly where a broken one is.

What a record means is not known here: that is formats.py. Nothing is guessed or repaired. A key that stands
twice in an object is an error: whichever value were kept, the other would be lost without a word.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pyft.errors import DataError

BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BLANK = " \t\r\n"


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
        if end == len(text) or not text[end:].strip(BLANK):
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
        start = len(text) - len(text.lstrip(BLANK))
        value, end = decode_value(text, start, source)
        if rest := text[end:].lstrip(BLANK):
            raise json.JSONDecodeError("a second value on the line", text, len(text) - len(rest))
        return value
    except json.JSONDecodeError as error:
        where = f"{source}:{error.pos + 1}"
        if not ended:
            raise DataError(
                f"{where}: the last line is cut ({error.msg}): the file ends inside a record; write the file "
                "again or delete this line"
            ) from error
        if number == 1 and text.strip(BLANK) in ("[", "{"):
            raise DataError(
                f"{where}: the record goes on over several lines: write one record a line, or name an array "
                ".json"
            ) from error
        raise DataError(f"{where}: broken JSON ({error.msg}): fix this line; one record a line") from error


def decode_value(text: str, start: int, source: str) -> tuple[Any, int]:
    """Decode one JSON value; its syntax errors are the caller's to describe.

    Args:
        text: Where it stands, other text behind it or not.
        start: Where it begins there.
        source: The record, for the message.

    Returns:
        The value, and where it ends.

    Raises:
        json.JSONDecodeError: It is broken.
        DataError: A key stands twice in it, or it is more than can be read.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except DuplicateKey as error:
        raise DataError(_describe_duplicate_key(source, error.args[0])) from None
    except RecursionError:
        raise DataError(f"{source}: the record is nested too deeply: flatten it") from None
    except ValueError as error:
        raise DataError(f"{source}: a number cannot be read ({error}): shorten it") from None


def _describe_duplicate_key(source: str, key: str) -> str:
    quoted = json.dumps(key, ensure_ascii=False)
    return f"{source}: the key {quoted} stands twice in one record: keep one of them"


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
