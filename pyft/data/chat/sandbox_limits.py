"""What one rendering of a chat template may use, counted where Jinja's own sandbox does not.

    loop rounds, calls, filters      each is a step; every 64 steps the clock is read
    strings, lists made on the way   each measured when it is made, and all of them together
    the output                       measured piece by piece

Jinja caps one range(), not the product of two; a width, a join, a replacement or a list that holds another
one twice makes much out of little in a single operation. Those are computed before they are carried out, or
are not offered at all: methods and filters that chat templates have no use for are left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace
from markupsafe import Markup

MAX_SOURCE_CHARACTERS = 200_000
MAX_CHARACTERS = 16_000_000
MAX_MADE_CHARACTERS = 256_000_000
MAX_PARTS = 1_000_000
MAX_STEPS = 2_000_000
MAX_SECONDS = 10.0
MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 99
_STEPS_BETWEEN_CLOCKS = 64

# fmt: off
_TEXT_METHODS = frozenset((
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition",
    "startswith", "endswith", "upper", "lower", "title", "capitalize", "swapcase", "casefold",
    "replace", "join", "find", "rfind", "index", "rindex", "count", "format", "removeprefix",
    "removesuffix", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "isnumeric",
    "isdecimal", "istitle", "isascii",
))
# fmt: on
SAFE_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    Markup: _TEXT_METHODS,
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
    range: frozenset(),
    bytes: frozenset(),
    int: frozenset(),
    float: frozenset(),
    bool: frozenset(),
}
"""Type -> its methods that a template may use; a type not here follows Jinja's rules."""

UNSAFE_FILTERS = (
    "batch",
    "center",
    "filesizeformat",
    "pprint",
    "random",
    "slice",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
)
UNSAFE_GLOBALS = ("lipsum",)

_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z]*(?:\*|[0-9]{3})")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{3}|\{)")


class Meter:
    """What one rendering has left."""

    __slots__ = ("characters_left", "deadline", "steps_left", "until_clock")

    def __init__(self) -> None:
        self.steps_left = MAX_STEPS
        self.characters_left = MAX_MADE_CHARACTERS
        self.until_clock = _STEPS_BETWEEN_CLOCKS
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self, steps: int = 1) -> None:
        """Count steps.

        Args:
            steps: How many.

        Raises:
            SecurityError: There are too many, or the time is over.
        """
        self.steps_left -= steps
        if self.steps_left < 0:
            raise SecurityError(f"it goes through more than {MAX_STEPS} loop rounds and calls")
        self.until_clock -= steps
        if self.until_clock < 0:
            self.until_clock = _STEPS_BETWEEN_CLOCKS
            if time.monotonic() > self.deadline:
                raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")

    def count_rounds(self, values: Iterable[Any]) -> Iterable[Any]:
        """Count the rounds of a loop: at once where they are few, else one by one.

        Args:
            values: What it goes through.

        Returns:
            The same values.
        """
        if isinstance(values, list | tuple | dict | str) and len(values) <= _STEPS_BETWEEN_CLOCKS:
            self.step(len(values) + 1)
            return values
        return self._count_each(values)

    def _count_each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value

    def take(self, value: Any) -> Any:
        """Count a value that was made.

        Args:
            value: The value.

        Returns:
            The same.

        Raises:
            SecurityError: It is too large, or all that was made is.
        """
        self.step()
        if value is None or isinstance(value, bool):
            return value
        self.characters_left -= measure(value)
        if self.characters_left < 0:
            raise SecurityError(f"it makes more than {MAX_MADE_CHARACTERS} characters on the way")
        return value


class PlainNamespace(Namespace):
    """A namespace that does not print what it holds: namespaces that hold each other would print for ever."""

    def __repr__(self) -> str:
        return "<namespace>"


def check_length(num_characters: int) -> None:
    """Refuse a text that is too long.

    Args:
        num_characters: Its length.

    Raises:
        SecurityError: It is.
    """
    if num_characters > MAX_CHARACTERS:
        raise SecurityError(f"it writes more than {MAX_CHARACTERS} characters")


def measure(value: Any) -> int:
    """Measure a value: characters of its texts, everything counted as often as it would be written.

    Args:
        value: Any value of a template.

    Returns:
        A number of characters.

    Raises:
        SecurityError: There are too many, or it has too many parts.
    """
    if isinstance(value, str):
        check_length(len(value))
        return len(value)
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise SecurityError("it computes with very large numbers")
    if not isinstance(value, list | tuple | dict):
        return 0
    total = parts = 0
    waiting = [value]
    while waiting:
        parts += 1
        item = waiting.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        if parts + len(waiting) > MAX_PARTS:
            raise SecurityError(f"it makes a list of more than {MAX_PARTS} parts")
    check_length(total)
    return total + parts


def check_width(width: Any) -> None:
    """Refuse an indentation that is too wide.

    Args:
        width: Blanks, or a text; None for none.

    Raises:
        SecurityError: It is.
    """
    if width is not None and (width if isinstance(width, int) else len(width)) > _MAX_WIDTH:
        raise SecurityError("it indents very far")


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large.

    Args:
        operator: One of * % **.
        left: Its left side.
        right: Its right side.

    Raises:
        SecurityError: It would.
    """
    if operator == "**" and not (abs(left) < 1e6 and abs(right) < 64):
        raise SecurityError("it raises a large number to a power")
    if operator == "*":
        for text, times in ((left, right), (right, left)):
            if isinstance(text, str | list | tuple) and isinstance(times, int):
                check_length(len(text) * times)
    if operator == "%" and isinstance(left, str):
        _check_format(left.replace("%%", ""), _WIDE_PERCENT, "%", right)


def check_method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a text's method whose result would be too large.

    Args:
        text: The text.
        name: The method.
        args: What it is called with.

    Returns:
        The same, with generators gone through.
    """
    if name == "replace" and len(args) >= 2:
        _check_replace(text, *args)
    elif name == "join" and len(args) == 1:
        return (_check_join(args[0], text)[0],)
    elif name in ("format", "format_map"):
        _check_format(text.replace("{{", ""), _WIDE_BRACES, "{", args)
    return args


def _check_format(text: str, wide: re.Pattern[str], mark: str, values: Any) -> None:
    if wide.search(text):
        raise SecurityError("it formats with a width")
    check_length(len(text) + text.count(mark) * (measure(values) + 1))


def _check_replace(text: Any, old: Any, new: Any, *count: Any) -> tuple[Any, ...]:
    check_length(len(str(text)) + str(text).count(str(old)) * len(str(new)))
    return (text, old, new, *count)


def _check_join(values: Any, separator: Any = "", *attribute: Any, **named: Any) -> tuple[Any, ...]:
    values = values if isinstance(values, str) else list(islice(values, MAX_PARTS + 1))
    separator = named.get("d", separator)
    check_length(len(str(separator)) * len(values) + measure(values))
    return (values, separator, *attribute, *([named["attribute"]] if "attribute" in named else []))


def _check_indent(text: Any, width: Any = 4, *flags: Any, **named: Any) -> tuple[Any, ...]:
    check_width(width)
    return (text, width, *flags, *(named[name] for name in ("first", "blank") if name in named))


def _check_round(value: Any, precision: int = 0, method: str = "common") -> tuple[Any, ...]:
    if abs(precision) > _MAX_WIDTH:
        raise SecurityError("it rounds to very many places")
    return (value, precision, method)


def _check_sum(values: Any, attribute: Any = None, start: Any = 0) -> tuple[Any, ...]:
    if not isinstance(start, int | float):
        raise SecurityError("it sums what are no numbers")
    return (values, attribute, start)


FILTER_CHECKS: dict[str, Callable[..., Any]] = {
    "join": _check_join,
    "replace": _check_replace,
    "indent": _check_indent,
    "round": _check_round,
    "sum": _check_sum,
}
"""Filter -> what refuses arguments that would make too much, and returns those to call it with."""
