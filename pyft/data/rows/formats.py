"""Turn records of any known format into rows: a conversation, a plain text, or tokens.

    text        {"text": ".."}                                                   a document, for pretraining
    messages    {"messages": [{"role": "..", "content": "..", "loss": true?}], "tools": ?} or the bare list
    sharegpt    {"conversations": [{"from": "human|gpt|..", "value": ".."}], "system": "?", "tools": "?"}
    alpaca      {"instruction": "..", "input": "?", "output": "..", "system": "?", "history": [["u", "a"]]?}
    prompt      {"prompt": ".." or [messages], "completion": ".." or [messages]}
    query       {"query": "..", "response": "..", "history": ?, "system": "?"}
    xtuner      {"conversation": [{"system": "?", "input": "..", "output": "..", "output_with_loss": true?}]}
    preference  {"prompt": .., "chosen": .., "rejected": ..}; or alpaca or sharegpt with the two answers
    tokenized   {"input_ids": [..], "labels": [..]}

A file has one format, given or detected from its first 100 rows; a row that does not fit it is an error with
its line. Rows that a format's convention leaves out (alpaca's `<nooutput>`) and keys that nothing reads are
counted. The converters of single records are listed in registry.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from pyft.config.schema import DataSource
from pyft.data.reading.chunks import RawChunk, read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.reading.json_lines import Record
from pyft.data.rows.columns import check_columns, check_present, rename_keys
from pyft.data.rows.detection import describe_unknown, detect_record
from pyft.data.rows.field_maps import get_map
from pyft.data.rows.fields import LeaveOut, RowError
from pyft.data.rows.registry import CONVERTERS, FORMATS, REQUIRED_KEYS
from pyft.data.rows.row import Row
from pyft.errors import DataError

DETECTION_ROWS = 100


@dataclass(frozen=True)
class RowFormat:
    """How one file is read: its format, {the format's key: the file's key}, system text of rows without one.

    `detected` says that the format was found from the rows; `map` names the field map it comes from, if any.
    """

    name: str
    detected: bool
    columns: dict[str, str]
    system: str | None
    map: str | None = None


def resolve_format(
    source: DataSource, head: Sequence[Record], path: str, *, on_bad_record: str = "error"
) -> RowFormat:
    """Decide how a file is read, from its source and its first hundred records.

    With `on_bad_record: skip` the most frequent format counts; else rows of none or of several raise
    DataError, as does a key in `columns` that no row has. An unknown map or key raises ConfigError.
    """
    format, columns, system = get_map(source.map) if source.map else ("auto", {}, None)
    if source.format != "auto":
        format = source.format
    columns |= source.columns
    system = source.system if source.system is not None else system
    check_columns(source.columns, format)
    records = [record for record in head[:DETECTION_ROWS] if record.error is None]
    detected = format == "auto"
    if not records and detected:
        raise DataError(_describe_no_records(path, head))
    values = [record.value for record in records]
    check_present(source.columns, values, path, "columns")
    needed = {key: own for key, own in columns.items() if key in REQUIRED_KEYS.get(format, ())}
    check_present(needed, values, path, f"map {source.map}")
    if detected:
        if on_bad_record == "error":
            _raise_first_error(head)
        format = _detect(records, path, columns, on_bad_record)
        check_columns(source.columns, format)
    return RowFormat(format, detected, columns, system, source.map)


def _describe_no_records(path: str, head: Sequence[Record]) -> str:
    if not head:
        return f"{path}: the file is empty: give it at least one row, or take it out of the recipe"
    if len(head) == 1:
        return str(head[0].error)
    return f"{head[0].error} (and none of the first {len(head[:DETECTION_ROWS])} rows can be read)"


def _raise_first_error(head: Sequence[Record]) -> None:
    for record in head[:DETECTION_ROWS]:
        if record.error is not None:
            raise DataError(record.error)


def _detect(records: Sequence[Record], path: str, columns: Mapping[str, str], on_bad_record: str) -> str:
    values = [rename_keys(record.value, columns, Counter()) for record in records]
    found = [detect_record(value) for value in values]
    votes = Counter(name for name in found if name is not None)
    if on_bad_record == "skip" and votes:
        return votes.most_common(1)[0][0]
    first = next(iter(votes), None)
    for record, value, name in zip(records, values, found, strict=True):
        if name is None:
            raise DataError(f"{path}:{record.number}: {describe_unknown(value, columns)}")
        if name != first:
            raise DataError(
                f"{path}:{record.number}: this row is {name}, the rows before it are {first}: "
                "put rows of one format in one file"
            )
    return str(first)


def convert_record(record: Record, path: str, format: RowFormat, unused: Counter[str]) -> Row:
    """Convert one record to a row, counting in `unused` the keys that are not read.

    A record that does not fit raises DataError, one that its format leaves out LeaveOut.
    """
    if record.error is not None:
        raise DataError(record.error)
    value, place = record.value, f"{path}:{record.number}"
    try:
        if format.columns:
            value = rename_keys(value, format.columns, unused)
        return CONVERTERS[format.name](value, unused)
    except RowError as error:
        if lacking := _describe_lacking(record, format):
            raise DataError(f"{place}: {lacking}") from None
        found = detect_record(value)
        if found is not None and found != format.name and format.name in FORMATS:
            first = "the rows before it are" if format.detected else "the recipe says"
            raise DataError(
                f"{place}: this row is {found}, {first} {format.name}: put rows of one format in one file"
            ) from None
        raise DataError(f"{place}: {error}") from None


def _describe_lacking(record: Record, format: RowFormat) -> str | None:
    """Name the missing key as the file would have it, not the format."""
    if isinstance(record.value, dict):
        for key in REQUIRED_KEYS.get(format.name, ()):
            own = format.columns.get(key, key)
            if own != key and own not in record.value:
                found = ", ".join(map(str, record.value)) or "none"
                return f"{own}, which stands for {key}, is missing (keys found: {found}): add it"
    return None


def read_head(chunks: Iterator[RawChunk]) -> tuple[list[Record], Iterator[RawChunk]]:
    """Decode the first records of a file, which resolve_format needs; also return all its chunks."""
    head: list[Record] = []
    read: list[RawChunk] = []
    for chunk in chunks:
        records = list(islice(chunk.decode(), DETECTION_ROWS - len(head)))
        head += records
        read.append(chunk.with_decoded(records))
        if len(head) >= DETECTION_ROWS:
            break
    return head, chain(read, chunks)


def iter_rows(source: DataSource, *, on_bad_record: str = "error") -> Iterator[Row]:
    """Yield the rows of a whole source, in this process, without those that their format leaves out."""
    unused: Counter[str] = Counter()
    for file in expand_source(source)[0]:
        head, chunks = read_head(read_chunks(file))
        format = resolve_format(source, head, file.path, on_bad_record=on_bad_record)
        for record in chain.from_iterable(chunk.decode() for chunk in chunks):
            try:
                yield convert_record(record, file.path, format, unused)
            except LeaveOut:
                continue
            except DataError:
                if on_bad_record == "error":
                    raise


def describe(path: str, format: RowFormat, num_rows: int, unused: Mapping[str, int]) -> str:
    """Say in one line how a file was read; `unused` counts the rows in which a key was not read."""
    how = "found from its keys" if format.detected else "as given"
    if format.map and not format.detected:
        how = f"map {format.map}"
    line = f"{path}: format {format.name} ({how}), {num_rows} rows"
    if unused:
        named = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
        line += f"; keys not used: {', '.join(f'{key} ({count})' for key, count in named[:8])}"
        line += f" and {len(named) - 8} more" if len(named) > 8 else ""
    return line
