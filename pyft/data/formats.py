"""Turn records of any known format into rows: a list of messages, or one plain text.

    text        {"text": ".."}                                                   a document, for pretraining
    messages    {"messages": [{"role": "..", "content": "..", "loss": true?}]}   or the bare list
    sharegpt    {"conversations": [{"from": "human|gpt|..", "value": ".."}], "system": "?"}
    alpaca      {"instruction": "..", "input": "?", "output": "..", "system": "?", "history": [["u", "a"]]?}
    xtuner      {"conversation": [{"system": "?", "input": "..", "output": "..", "output_with_loss": true?}]}

A file has one format, found from its first 100 rows or given; a row that does not fit it is an error with
its line. Rows that a format's convention leaves out (alpaca's `<nooutput>`) and keys that nothing reads are
counted. How a single record is converted is in converters.py.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from pyft.config import DataError
from pyft.data.converters import (
    CONVERTERS,
    FORMATS,
    REQUIRED_KEYS,
    LeaveOut,
    Message,
    Row,
    RowError,
    detect_record,
)
from pyft.data.rows import Record, json_type, read_records

__all__ = ["FORMATS", "Message", "Row", "RowFile", "read_rows"]

_DETECTION_ROWS = 100


@dataclass
class RowFile:
    """The rows of one file and what was counted while reading them.

    Every record read is in `rows` or counted in `left_out`; `unused_keys` counts keys that no row used.
    """

    path: str
    format: str
    detected: bool
    rows: list[Row] = field(default_factory=list)
    records_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """Say in one line which format the file was read as.

        Returns:
            For the console: path, format, how it was chosen, rows, keys not used.
        """
        how = "found from its keys" if self.detected else "as given"
        line = f"{self.path}: format {self.format} ({how}), {self.records_read} rows"
        if self.unused_keys:
            keys = ", ".join(f"{key} ({count})" for key, count in self.unused_keys.most_common(8))
            line += f"; keys not used: {keys}"
        return line


def read_rows(path: str, format: str = "auto") -> RowFile:
    """Read a whole file as rows.

    DataError is raised further down where the file or a row in it cannot be read as one format; the message
    has file and line.

    Args:
        path: A .jsonl, .json or .txt file.
        format: One of FORMATS, or "auto": all of the first 100 rows must agree.

    Returns:
        The rows in file order, with counts.
    """
    records = read_records(path)
    head = list(islice(records, _DETECTION_ROWS))
    detected = format == "auto"
    chosen = _detect(path, head) if detected else format
    result = RowFile(path, chosen, detected)
    convert = CONVERTERS[chosen]
    for record in chain(head, records):
        result.records_read += 1
        _convert(record, convert, result)
    return result


def _convert(record: Record, convert: Callable[..., Row], result: RowFile) -> None:
    try:
        result.rows.append(convert(record.value, record.source, result.unused_keys))
    except LeaveOut as reason:
        result.left_out[str(reason)] += 1
    except RowError as error:
        found = detect_record(record.value)
        if found is not None and found != result.format:
            first = "the rows before it are" if result.detected else "the recipe says"
            raise DataError(
                f"{record.source}: this row is {found}, {first} {result.format}: put rows of one format "
                "in one file"
            ) from None
        raise DataError(f"{record.source}: {error}") from None


def _detect(path: str, head: list[Record]) -> str:
    first = None
    for record in head:
        found = detect_record(record.value)
        if found is None:
            raise DataError(f"{record.source}: {_describe_unknown(record.value)}")
        if first is None:
            first = found
        elif found != first:
            raise DataError(
                f"{record.source}: this row is {found}, the rows before it are {first}: "
                "put rows of one format in one file"
            )
    if first is None:
        raise DataError(f"{path}: the file is empty: give it at least one row, or take it out of the recipe")
    return first


def _describe_unknown(value: Any) -> str:
    if not isinstance(value, dict):
        return f"the row is {json_type(value)}, not an object: each row is an object such as {{'text': '..'}}"
    if not value:
        return "the row is an empty object: fill it or delete it"
    found = ", ".join(value)
    if {"role", "content"} <= value.keys():
        return (
            f"the row is a single message (keys {found}), not a conversation: "
            'put a conversation\'s messages in one row, {"messages": [..]}'
        )
    if {"chosen", "rejected"} <= value.keys():
        return (
            f"the row is a preference (keys {found}), from which neither mode sft nor pretrain learns: "
            "give rows of conversations or texts"
        )
    nearest, missing = _nearest_format(value)
    if not missing:
        return (
            f"no known format fits the keys {found}: nearest is {nearest}, whose "
            f"{REQUIRED_KEYS[nearest][0]!r} "
            "is not what that format holds: see data.train[].format"
        )
    return (
        f"no known format fits the keys {found}: nearest is {nearest}, which lacks {', '.join(missing)}: "
        f"rename the keys (formats read: {', '.join(FORMATS)})"
    )


def _nearest_format(value: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the format whose required keys are most nearly there, and those that are missing."""

    def closeness(name: str) -> tuple[float, float]:
        required = REQUIRED_KEYS[name]
        present = sum(key in value for key in required) / len(required)
        alike = max(difflib.SequenceMatcher(None, want, key).ratio() for want in required for key in value)
        return present, alike

    nearest = max(FORMATS, key=closeness)
    return nearest, [key for key in REQUIRED_KEYS[nearest] if key not in value]
