"""Rename the keys of records as `columns` says: {the format's key: the file's key}.

Keys of turns are renamed inside the lists of turns, all others at the top level. A key of the file that a
renamed one hides is not read, and counted.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pyft.data.rows.registry import KEYS, TURN_KEYS, TURN_LISTS
from pyft.errors import ConfigError, DataError


def check_columns(columns: Mapping[str, str], format: str) -> None:
    """Refuse keys that the format does not have ("auto": that no format has)."""
    if format == "auto":
        known = list(dict.fromkeys(key for keys in KEYS.values() for key in keys))
    else:
        known = list(KEYS[format])
    for key in columns:
        if key in known:
            continue
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        where = "no format has a key" if format == "auto" else f"format {format} has no key"
        hint = f"did you mean {nearest[0]}?" if nearest else "write"
        raise ConfigError(
            f"{where} {key!r} (data.train[].columns): {hint} {{the format's key: the file's key}}, the "
            f"format's being {', '.join(known)}"
        )


def check_present(columns: Mapping[str, str], values: Sequence[Any], path: str, namer: str) -> None:
    """Refuse columns that no record has; `namer` says who named them, for the message."""
    found: dict[str, None] = {}
    for value in values:
        objects = [value, *_turns(value)] if isinstance(value, dict) else value
        for turn in objects if isinstance(objects, list) else ():
            found.update(dict.fromkeys(turn) if isinstance(turn, dict) else {})
    for key, own in columns.items():
        if own not in found and values:
            nearest = difflib.get_close_matches(own, found, n=1, cutoff=0.6)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise DataError(
                f"{path}: no row has the key {own!r} that {namer} names for {key} (keys found: "
                f"{', '.join(found) or 'none'}{hint}): name a key of the file under columns"
            )


def _turns(record: dict[str, Any]) -> list[Any]:
    turns: list[Any] = []
    for inner in record.values():
        if isinstance(inner, list):
            turns.extend(inner)
        elif isinstance(inner, dict):
            turns.append(inner)
    return turns


def rename_keys(value: Any, columns: Mapping[str, str], unused: Counter[str]) -> Any:
    """Return a record with the format's keys, counting in `unused` those that a renamed one hides."""
    in_turns = {key: own for key, own in columns.items() if key in TURN_KEYS}
    if isinstance(value, list):
        return _rename_turns(value, in_turns, unused)
    if not isinstance(value, dict):
        return value
    renamed = _rename(value, columns, "", unused)
    if in_turns:
        for key in TURN_LISTS:
            if key in renamed:
                renamed[key] = _rename_turns(renamed[key], in_turns, unused)
    return renamed


def _rename_turns(turns: Any, columns: Mapping[str, str], unused: Counter[str]) -> Any:
    if isinstance(turns, dict):
        return _rename(turns, columns, "[].", unused)
    if not isinstance(turns, list):
        return turns
    return [_rename(turn, columns, "[].", unused) if isinstance(turn, dict) else turn for turn in turns]


def _rename(
    record: dict[str, Any], columns: Mapping[str, str], prefix: str, unused: Counter[str]
) -> dict[str, Any]:
    present = {key: own for key, own in columns.items() if own in record}
    taken = set(present.values())
    renamed = {key: record[own] for key, own in present.items()}
    for key, inner in record.items():
        if key in taken:
            continue
        if key in renamed:
            unused[prefix + key] += 1
        else:
            renamed[key] = inner
    return renamed
