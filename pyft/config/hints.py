"""What to write instead of a name that a recipe cannot have.

First the tables of names that other tools use for the same thing, then the same word in another section, then
the nearest name by spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pyft.config.foreign import FILE_KINDS, FOREIGN_NAMES, FOREIGN_SOURCE_KEYS, FOREIGN_VALUES
from pyft.config.key_path import KeyPath, show_path
from pyft.config.names import Name, known_names, name_of

SOURCES: tuple[Name, ...] = (("data", "train"), ("data", "validation"))
"""The names whose entries are data sources."""


def hint_for(path: KeyPath, prefix: str = "") -> str:
    """Says what to write instead of an unknown name.

    Args:
        path: the unknown place, inside a stage.
        prefix: what stands before it in the recipe, as `stages[1].`.

    Returns:
        A sentence for the end of an error message.
    """
    word = str(path[-1])
    if name_of(path[:-1]) in SOURCES and word in FOREIGN_SOURCE_KEYS:
        return f"write {prefix}{show_path((*path[:-1], FOREIGN_SOURCE_KEYS[word]))}"
    foreign = FOREIGN_NAMES.get(word) or FOREIGN_NAMES.get(word.replace("-", "_"))
    if foreign is not None:
        return f"write {foreign}"
    nearest = _nearest(path)
    if nearest is not None:
        return f"did you mean {prefix}{show_path(_with_indices(nearest, path))}?"
    siblings = [name[-1] for name in known_names() if name[:-1] == name_of(path[:-1])]
    return f"remove it; known here: {', '.join(siblings)}" if siblings else "remove it"


def hint_for_value(name: Name, value: object, allowed: Sequence[str]) -> str:
    """Says which value may be meant where another one of a few is written.

    Args:
        name: whose value it is.
        value: the one that is not allowed.
        allowed: those that are.

    Returns:
        A clause to put before the list of them, or nothing.
    """
    if not isinstance(value, str):
        return ""
    word = value.lower()
    is_format = name[:2] in SOURCES and name[-1] == "format"
    if is_format and word.rpartition(".")[2] in FILE_KINDS:
        return "the kind of file is known from its name, this says how its rows are written: "
    table = FOREIGN_VALUES.get(("data", "train", "format") if is_format else name, {})
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.7)
    meant = table.get(word) or (close[0] if close else None)
    return f"did you mean {meant}? " if meant else ""


def _nearest(path: KeyPath) -> Name | None:
    name = name_of(path)
    names = list(known_names())
    same_word = [known for known in names if known[-1] == name[-1]]
    if same_word:
        return max(same_word, key=lambda known: _likeness(known, name))
    siblings = {known[-1]: known for known in names if known[:-1] == name[:-1]}
    close = difflib.get_close_matches(name[-1], siblings, n=1, cutoff=0.7)
    if close:
        return siblings[close[0]]
    words = {known[-1]: known for known in names}
    close = difflib.get_close_matches(name[-1], words, n=1, cutoff=0.75)
    return words[close[0]] if close else None


def _likeness(one: Name, other: Name) -> float:
    return difflib.SequenceMatcher(None, show_path(one), show_path(other)).ratio()


def _with_indices(name: Name, path: KeyPath) -> KeyPath:
    """Give a known name the indices of the path it stands for: data.train.path -> data.train[0].path."""
    result: list[str | int] = []
    for depth, step in enumerate(name):
        result.append(step)
        if depth + 1 < len(name) and name[: depth + 1] in SOURCES:
            position = len(result)
            given = path[position] if len(path) > position and path[:position] == tuple(result) else 0
            result.append(given if isinstance(given, int) else 0)
    return tuple(result)
