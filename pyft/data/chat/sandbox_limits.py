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
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 99
_PART_SIZE = MAX_CHARACTERS // MAX_PARTS
_SHORT_LOOP = 64
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
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_WIDE_PERCENT = re.compile(r"[%)][#0\- +.0-9hlL]*(?:\*|[0-9]{3})")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{3}|\{)")


class Meter:
    """What one rendering has left."""

    __slots__ = ("characters_left", "deadline", "steps_left")

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
        self.steps_left -= 1
        if self.steps_left < 0 or monotonic() > self.deadline:
            self.step()
        if isinstance(value, _MEASURED):
            size = len(value) if isinstance(value, str) else measure(value)
            self.characters_left -= size
            if size > MAX_CHARACTERS:
                check_size(size)
            if self.characters_left < 0:
                raise SecurityError(f"it makes more than {MAX_MADE_CHARACTERS} characters on the way")
        elif hasattr(value, "__next__") and not isinstance(value, LoopContext):
            return self._count_each(value)
        return value


def check_size(size: int) -> None:
    """Refuse a value of more than MAX_CHARACTERS."""
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters, or {MAX_PARTS} parts")


def measure(value: Any) -> int:
    """Return the size of a value, at most MAX_CHARACTERS."""
    if isinstance(value, str):
        check_size(len(value))
        return len(value)
    if value is True or value is False:
        return 0
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, _SIZED):
            size += _PART_SIZE * len(item)
            waiting += item
            if isinstance(item, dict):
                waiting += item.values()
        elif isinstance(item, int):
            size += item.bit_length()
            if item.bit_length() > _MAX_INTEGER_BITS:
                raise SecurityError("it computes with very large numbers")
        check_size(size)
    return size


def check_width(width: Any) -> None:
    """Refuse an indentation, in blanks or as a text, that is too wide."""
    if width is not None and (width if isinstance(width, int) else len(width)) > _MAX_WIDTH:
        raise SecurityError("it indents very far")


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation, one of * % **, whose result would be too large."""
    if operator == "**" and not (abs(left) < 1e6 and abs(right) < 64):
        raise SecurityError("it raises a large number to a power")
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                check_size(measure(value) * times)
    if operator == "%" and isinstance(left, str):
        check_size(_percent_size(left, right))


def _percent_size(text: str, values: Any) -> int:
    return _format_size(text.replace("%%", ""), _WIDE_PERCENT, "%", values)


def _braces_size(text: str, *args: Any, **named: Any) -> int:
    return _format_size(text.replace("{{", ""), _WIDE_BRACES, "{", (args, named))


def _format_size(text: str, wide: re.Pattern[str], mark: str, values: Any) -> int:
    if wide.search(text):
        raise SecurityError("it formats with a width")
    return len(text) + text.count(mark) * (measure(values) + _LONGEST_NUMBER)


def _replace_size(text: Any, old: Any, new: Any, count: Any = None) -> int:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _join_size(values: Any, d: Any = "", attribute: Any = None) -> int:
    return _characters_size(values) + len(str(d)) * len(values) + measure(values)


def _lines_size(text: Any, *keepends: Any) -> int:
    return len(str(text)) + _PART_SIZE * (1 + sum(map(str(text).count, _LINE_ENDS)))


def _indent_size(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    check_width(width)
    return _lines_size(text) * (1 + (width if isinstance(width, int) else len(width)) // _PART_SIZE)


def _split_size(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    return len(text) + _PART_SIZE * (1 + (len(text) // 2 if sep is None else text.count(sep)))


def _characters_size(value: Any, *args: Any, **named: Any) -> int:
    return _PART_SIZE * len(value) if isinstance(value, str) else 0


def _round_size(value: Any, precision: int = 0, method: str = "common") -> int:
    if abs(precision) > _MAX_WIDTH:
        raise SecurityError("it rounds to very many places")
    return 0


def _sum_size(values: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise SecurityError("it sums what are no numbers")
    return 0


Sizes = dict[str, Callable[..., int]]
METHOD_SIZES: Sizes = {
    "format": _braces_size,
    "format_map": _braces_size,
    "join": lambda separator, values: _join_size(values, separator),
    "replace": _replace_size,
    "split": _split_size,
    "rsplit": _split_size,
    "splitlines": _lines_size,
}
"""Method of a text -> how much it would make of its text and arguments."""
FILTER_SIZES: Sizes = {
    **dict.fromkeys(("groupby", "list", "sort", "title", "urlencode", "wordcount"), _characters_size),
    "format": lambda value, *args, **named: _percent_size(str(value), named or args),
    "indent": _indent_size,
    "join": _join_size,
    "replace": _replace_size,
    "round": _round_size,
    "sum": _sum_size,
}
"""Filter -> the same."""
