"""Decode the records of a JSON array, saying exactly where a broken one is.

Records are numbered from 1. The rest after a syntax error cannot be split into records, so it ends the
file; a duplicate key spoils its own record only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pyft.data.reading.json_lines import (
    BLANK,
    BOM,
    Record,
    check_encoding,
    decode_utf8,
    decode_value,
    json_type,
)
from pyft.errors import DataError

_LENIENT_DECODER = json.JSONDecoder()


def decode_array(raw: bytes, path: str) -> Iterator[Record]:
    """Decode the elements of a JSON array, none for a blank file; DataError where it cannot be read on."""
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
    try:
        value, end = decode_value(text, start, f"{path}:{row}")
        return Record(value, row), end
    except json.JSONDecodeError as error:
        raise DataError(_describe_array_error(path, text, error.pos, error.msg, row)) from error
    except DataError as error:
        try:
            _, end = _LENIENT_DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            raise error from None
        # Only a key is duplicated: the end of the element is known, so the others can still be read.
        return Record(None, row, str(error)), end


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANK:
        position += 1
    return position


def _describe_array_error(path: str, text: str, position: int, message: str, row: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    where = f"{path}:{line}:{column}"
    if position >= len(text):
        return f"{where}: the file is cut short in row {row} ({message}): it ends too early; write it again"
    return f"{where}: broken JSON in row {row} ({message}): fix it there"


def _describe_no_array(path: str, text: str, start: int) -> str:
    line = text.count("\n", 0, start) + 1
    where = f"{path}:{line}:{start - text.rfind(chr(10), 0, start)}"
    try:
        value, end = decode_value(text, start, where)
    except json.JSONDecodeError as error:
        return _describe_array_error(path, text, error.pos, error.msg, 1)
    if not isinstance(value, dict):
        return f"{where}: the file holds {json_type(value)}, not an array of rows: write [row, row, ...]"
    if text[end:].strip(BLANK):
        return f"{where}: the file holds one record after another, not an array: name it .jsonl"
    for key, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict | list):
            return (
                f"{where}: the rows are wrapped in an object, under the key "
                f"{json.dumps(key, ensure_ascii=False)}: save that list itself as the file"
            )
    return f"{where}: the file holds one object, not an array of rows: put it in [ ]"
