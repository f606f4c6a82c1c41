"""Render chat templates, which are other people's programs, where they can do no harm.

Jinja's immutable sandbox (as in transformers: trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, `tojson`), plus what it leaves out:

- `{% generation %} .. {% endgeneration %}`, whose positions in the output are reported;
- limits: output and every string on the way to it, loop rounds in all, seconds. Nested loops pass Jinja's own
  sandbox (it caps one range(), not their product), so each loop round and each join is counted here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

MAX_OUTPUT_CHARACTERS = 16_000_000
MAX_LOOP_ROUNDS = 2_000_000
MAX_SECONDS = 10.0
# Widths make strings of any length out of nothing, and no chat template pads.
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class TemplateFailure(Exception):
    """The template could not be parsed, refused the conversation, or went over a limit."""


class _Meter:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.rounds_left = MAX_LOOP_ROUNDS
        self.deadline = time.monotonic() + MAX_SECONDS

    def count_round(self) -> None:
        self.rounds_left -= 1
        if self.rounds_left < 0:
            raise SecurityError(f"it goes through more than {MAX_LOOP_ROUNDS} loop rounds")
        if self.rounds_left % 1024 == 0:
            self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")


def _check_length(num_characters: int) -> None:
    if num_characters > MAX_OUTPUT_CHARACTERS:
        raise SecurityError(f"it writes more than {MAX_OUTPUT_CHARACTERS} characters")


def _check_size(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _check_length(len(value))
    return value


class _GenerationMarks(Extension):
    """The block `{% generation %}`: reports where its output starts and ends."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return self.environment.rendering.mark(caller)


class _Rendering:
    """One rendering under way: the pieces written so far and the marks found."""

    def __init__(self) -> None:
        self.meter = _Meter()
        self.num_characters = 0
        self.pieces: list[str] = []
        self.spans: list[tuple[int, int]] = []

    def mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        self.spans.append((self.num_characters, self.num_characters + len(text)))
        return text

    def collect(self, pieces: Iterable[str]) -> str:
        for piece in pieces:
            self.num_characters += len(piece)
            _check_length(self.num_characters)
            self.meter.check_time()
            self.pieces.append(piece)
        return "".join(self.pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with counted loops and measured strings."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols])
        self.rendering = _Rendering()
        self.filters["tojson"] = _to_json
        self.filters["_counted"] = self._count_rounds
        self.filters["_measured"] = _check_size
        del self.filters["center"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: datetime.now().strftime(format)

    def _count_rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        meter = self.rendering.meter
        for value in values:
            meter.count_round()
            yield value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1e6 and abs(right) < 64):
            raise SecurityError("it raises a large number to a power")
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    _check_length(len(text) * times)
        return _check_size(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str) and getattr(__obj, "__name__", "") == "replace" and len(args) >= 2:
            _check_length(len(text) + text.count(args[0]) * len(args[1]))
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        _measure_joins(tree)
        tree.set_environment(self)
        return tree


def _measure_joins(node: nodes.Node) -> None:
    """Wrap every `a ~ b` so that its length is checked (the sandbox does not intercept it)."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_measured(child) for child in value])
        else:
            setattr(node, name, _measured(value))


def _measured(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _measure_joins(value)
    if isinstance(value, nodes.Concat):
        return nodes.Filter(value, "_measured", [], [], None, None, lineno=value.lineno)
    return value


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class CompiledTemplate:
    """A parsed template that can be rendered many times (not from several threads at once)."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateFailure(f"it is no valid Jinja{line}: {error}") from error

    def render(self, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Render with `variables`.

        Args:
            variables: What the template can see: plain strings, numbers, lists and dicts only.

        Returns:
            The text, and the character spans of its generation blocks.

        Raises:
            TemplateFailure: The template refused, failed, or went over a limit.
        """
        rendering = self._environment.rendering = _Rendering()
        try:
            text = rendering.collect(self._template.generate(**variables))
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise TemplateFailure(str(error) or type(error).__name__) from error
        except (RecursionError, MemoryError) as error:
            raise TemplateFailure(f"it needs too much ({type(error).__name__})") from error
        return text, rendering.spans


@lru_cache(maxsize=32)
def compile_template(source: str) -> CompiledTemplate:
    """Parse a template's source; equal sources are parsed once.

    TemplateFailure is raised further down where the source is no valid Jinja.

    Args:
        source: Jinja text.

    Returns:
        The parsed template.
    """
    return CompiledTemplate(source)
