"""What one rendering of a chat template may use, and how much a call would make.

    steps        rounds of loops, calls, filters, values made on the way; the clock is read at each
    one value    the characters of its texts, 16 for every part of a list: as if it were written out, so that
                 what it holds twice counts twice
    all values   the same, added up
    the output   characters

What makes much out of little in one call (a width, `*`, join, replace, split) is computed before it is made.
Methods and filters that chat templates have no use for are not offered at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.sandbox import SecurityError

MAX_SOURCE_CHARACTERS = 200_000
MAX_CHARACTERS = 16_000_000
MAX_MADE_CHARACTERS = 256_000_000
MAX_PARTS = 1_000_000
MAX_STEPS = 2_000_000
MAX_SECONDS = 10.0
_PART_SIZE = MAX_CHARACTERS // MAX_PARTS
_SHORT_LOOP = 64
_MAX_WIDTH = 99
_MAX_INTEGER_BITS = 4096
_LONGEST_NUMBER = 512
"""A float with all its digits and a width of at most 99."""

# fmt: off
SAFE_METHODS = frozenset((
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition",
    "startswith", "endswith", "upper", "lower", "title", "capitalize", "swapcase", "casefold",
    "replace", "join", "find", "rfind", "index", "rindex", "count", "removeprefix", "removesuffix",
    "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "isnumeric", "isdecimal", "istitle",
    "isascii", "get", "items", "keys", "values",
))
"""Of texts, lists, dicts and numbers; `format` is Jinja's own."""
UNSAFE_FILTERS = (
    "batch", "center", "filesizeformat", "pprint", "random", "slice", "striptags", "urlize", "wordwrap",
    "xmlattr",
)
# fmt: on

_SIZED = (str, list, tuple, dict)
_MEASURED = (*_SIZED, int)
_WIDE_PERCENT = re.compile(r"[%)][#0\- +.0-9hlL]*(?:\*|[0-9]{3})")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{3}|\{)")


class Meter:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps_left = MAX_STEPS
        self.characters_left = MAX_MADE_CHARACTERS
        self.deadline = monotonic() + MAX_SECONDS

    def step(self, steps: int = 1) -> None:
        """Count steps, and look at the clock."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise SecurityError(f"it goes through more than {MAX_STEPS} loop rounds and calls")
        if monotonic() > self.deadline:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")

    def count_rounds(self, values: Iterable[Any]) -> Iterable[Any]:
        """Count the rounds of a loop: of a short one at once, of others one by one."""
        if isinstance(values, _SIZED) and len(values) <= _SHORT_LOOP:
            self.step(len(values) + 1)
            return values
        return self._count_each(values)

    def _count_each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value

    def take(self, value: Any) -> Any:
        """Count a value that was made, and return it; what it yields is counted as it is taken."""
        self.step()
        if isinstance(value, _MEASURED):
            self.characters_left -= measure(value)
            if self.characters_left < 0:
                raise SecurityError(f"it makes more than {MAX_MADE_CHARACTERS} characters on the way")
        elif hasattr(value, "__next__") and type(value) is not LoopContext:
            return self._count_each(value)
        return value


def refuse(is_too_much: bool, why: str) -> int:
    """Refuse what is too much; return 0, the size of nothing, where it is not."""
    if is_too_much:
        raise SecurityError(why)
    return 0


def check_size(size: int) -> None:
    """Refuse a value of more than MAX_CHARACTERS."""
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters, or {MAX_PARTS} parts")


def measure(value: Any) -> int:
    """Return the size of a value, at most MAX_CHARACTERS."""
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, _SIZED):
            size += _PART_SIZE * len(item)
            waiting += item
            waiting += item.values() if isinstance(item, dict) else ()
        elif isinstance(item, int):
            size += item.bit_length()
            refuse(item.bit_length() > _MAX_INTEGER_BITS, "it computes with very large numbers")
        check_size(size)
    return size


def collect(pieces: Iterable[str]) -> str:
    """Join pieces of a text that may grow too long."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        check_size(size)
        kept.append(piece)
    return "".join(kept)


def check_width(width: Any) -> int:
    """Return a width, of blanks or a text, or refuse it."""
    size = width or 0 if width is None or isinstance(width, int) else len(width)
    return refuse(size > _MAX_WIDTH, "it indents very far") or size


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation, one of * % **, whose result would be too large."""
    if operator == "**":
        refuse(not (abs(left) < 1e6 and abs(right) < 64), "it raises a large number to a power")
    elif operator == "%" and isinstance(left, str):
        check_size(_percent_size(left, right))
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, _SIZED) and isinstance(times, int):
                check_size(measure(value) * times)


def _percent_size(text: str, values: Any) -> int:
    return _format_size(text.replace("%%", ""), _WIDE_PERCENT, "%", values)


def _braces_size(text: str, *args: Any, **named: Any) -> int:
    return _format_size(text.replace("{{", ""), _WIDE_BRACES, "{", (args, named))


def _format_size(text: str, wide: re.Pattern[str], mark: str, values: Any) -> int:
    refuse(wide.search(text) is not None, "it formats with a width")
    return len(text) + text.count(mark) * (measure(values) + _LONGEST_NUMBER)


def _replace_size(text: Any, old: Any, new: Any, count: Any = None) -> int:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _join_size(values: Any, d: Any = "", attribute: Any = None) -> int:
    return _parts_size(values) + len(str(d)) * len(values) + measure(values)


def _split_size(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    return _PART_SIZE * (text.count(sep) if sep else len(text) // 2)


def _parts_size(value: Any, *args: Any, **named: Any) -> int:
    """Return the size of the list of a text's characters."""
    return _PART_SIZE * len(value) if isinstance(value, str) else 0


METHOD_SIZES: dict[str, Callable[..., int]] = {
    "format": _braces_size,
    "format_map": _braces_size,
    "join": lambda separator, values: _join_size(values, separator),
    "replace": _replace_size,
    "split": _split_size,
    "rsplit": _split_size,
    "splitlines": _parts_size,
}
"""Method of a text -> how much it would make of its text and arguments."""
FILTER_SIZES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("groupby", "list", "sort", "title", "urlencode", "wordcount"), _parts_size),
    "format": lambda value, *args, **named: _percent_size(str(value), named or args),
    "indent": lambda text, width=4, *flags, **named: len(str(text)) * (_PART_SIZE + check_width(width)),
    "join": _join_size,
    "replace": _replace_size,
    "round": lambda value, precision=0, method="": refuse(
        abs(precision) > _MAX_WIDTH, "it rounds to very many places"
    ),
    "sum": lambda values, attribute=None, start=0: refuse(
        not isinstance(start, int | float), "it sums things that are not numbers"
    ),
}
"""Filter -> the same."""
