"""Render chat templates, which are other people's programs, where they can do no harm.

Jinja's immutable sandbox (as in transformers: trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, `tojson`), plus what it leaves out:

- `{% generation %} .. {% endgeneration %}`, whose places in the output are reported. The block writes a
  character before and after its text, so that its place is right wherever the text goes: into a macro, a
  variable, a filter;
- limits, see sandbox_limits.py, which sandbox_tree.py puts into the template's syntax tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from pyft.data.chat import sandbox_limits as limits
from pyft.data.chat.sandbox_tree import COUNTED, TAKEN, WRITTEN, meter_tree

_MARKS = range(0xFDD0, 0xFDF0)
"""Characters that Unicode keeps out of texts; two that the conversation does not hold mark a generation."""
_PRIVATE_ESCAPES = re.compile(r"\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")
_MAX_DATE_FORMAT = 1000
_DICT_METHODS = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(("first", "last", "index", "index0", "length", "previtem", "nextitem"))

Span = tuple[int, int]


class TemplateFailure(Exception):
    """The template could not be parsed, refused the conversation, or went over a limit."""


class _GenerationMarks(Extension):
    """The block `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return self.environment.rendering.mark(caller)


class _Rendering:
    """One rendering under way."""

    def __init__(self, marks: tuple[str, str]) -> None:
        self.meter = limits.Meter()
        self.marks = marks
        self.num_marked = 0
        self.is_inside = False

    def mark(self, caller: Callable[[], str]) -> str:
        """Enclose the text of a generation block in the two marks."""
        if self.is_inside:
            raise SecurityError("its generation blocks lie in each other")
        self.is_inside = True
        text = caller()
        self.is_inside = False
        self.num_marked += 1
        return f"{self.marks[0]}{text}{self.marks[1]}"

    def collect(self, stream: Iterable[str]) -> str:
        """Join the output."""
        pieces = []
        length = 0
        for piece in stream:
            length += len(piece)
            if length > limits.MAX_CHARACTERS:
                limits.check_length(length)
            pieces.append(piece)
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with everything counted."""

    intercepted_binops = frozenset({"*", "%", "**"})

    def __init__(self) -> None:
        self.rendering = _Rendering(("", ""))
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols])
        for name in limits.UNSAFE_FILTERS:
            del self.filters[name]
        for name in limits.UNSAFE_GLOBALS:
            del self.globals[name]
        self.filters |= {"tojson": _to_json, "format": _format}
        self.filters = {name: self._metered(name, function) for name, function in self.filters.items()}
        self.filters |= {
            COUNTED: lambda values: self.rendering.meter.count_rounds(values),
            TAKEN: lambda value: self.rendering.meter.take(value),
            WRITTEN: lambda value: self.rendering.meter.take(str(value)),
        }
        self.globals["namespace"] = limits.PlainNamespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _format_now

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what was written into a buffer (Jinja's generated code looks this name up)."""
        pieces = list(pieces)
        limits.check_length(sum(map(len, pieces)))
        return self.rendering.meter.take("".join(pieces))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        limits.check_operation(operator, left, right)
        return self.rendering.meter.take(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        methods = limits.SAFE_METHODS.get(type(obj))
        return super().is_safe_attribute(obj, attr, value) if methods is None else attr in methods

    def getattr(self, obj: Any, attribute: str) -> Any:
        # The way of nearly every `message.role`, without the exceptions that Jinja's own way goes through.
        if type(obj) is dict and attribute not in _DICT_METHODS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Any:
        format_safely = super().wrap_str_format(value)
        if format_safely is None:
            return None

        @wraps(format_safely)
        def format_measured(*args: Any, **kwargs: Any) -> str:
            limits.check_method(value.__self__, "format", (args, kwargs))
            return format_safely(*args, **kwargs)

        return format_measured

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = self.rendering.meter
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            args = limits.check_method(text, __obj.__name__, args)
        elif isinstance(__obj, LoopContext):
            args = tuple(meter.count_rounds(values) for values in args)
        meter.step()
        return meter.take(super().call(__context, __obj, *args, **kwargs))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        check = limits.FILTER_CHECKS.get(name)
        num_passed = hasattr(function, "jinja_pass_arg")

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if check is not None:
                args, kwargs = (*args[:num_passed], *check(*args[num_passed:], **kwargs)), {}
            return self.rendering.meter.take(function(*args, **kwargs))

        return run

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        meter_tree(tree)
        tree.set_environment(self)
        return tree


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _format_now(format: str) -> str:
    if len(format) > _MAX_DATE_FORMAT:
        raise SecurityError("its date format is very long")
    return datetime.now().strftime(format)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    limits.check_operation("%", str(value), kwargs or args)
    return str(value) % (kwargs or args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    limits.check_width(indent)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if ensure_ascii:
        # Placeholders (see rendering.py) stay what they are: they stand for something else.
        return _PRIVATE_ESCAPES.sub(lambda match: json.loads(f'"{match[0]}"'), text)
    return text


class CompiledTemplate:
    """A parsed template that can be rendered many times (not from several threads at once)."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        if len(source) > limits.MAX_SOURCE_CHARACTERS:
            raise TemplateFailure(f"it is longer than {limits.MAX_SOURCE_CHARACTERS} characters")
        try:
            self._template = self._environment.from_string(source)
            self._globals = dict(self._template.globals)
        except Exception as error:  # Python's own compiler refuses some, too
            line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateFailure(f"it is no valid Jinja{line}: {error}") from error

    def render(self, variables: dict[str, Any]) -> tuple[str, list[Span]]:
        """Render with `variables`.

        TemplateFailure is raised further down where the template refuses, fails, or goes over a limit.

        Args:
            variables: What the template can see: plain strings, numbers, lists and dicts only.

        Returns:
            The text, and the character spans of its generation blocks.
        """
        opening, closing = chr(_MARKS[0]), chr(_MARKS[1])
        text, num_marked = self._render(variables, (opening, closing))
        if text.count(opening) != num_marked or text.count(closing) != num_marked:
            written = json.dumps(variables, ensure_ascii=False)
            opening, closing = [chr(code) for code in _MARKS if chr(code) not in written][:2]
            text, num_marked = self._render(variables, (opening, closing))
        return _take_marks(text, opening, closing) if num_marked else (text, [])

    def _render(self, variables: dict[str, Any], marks: tuple[str, str]) -> tuple[str, int]:
        rendering = self._environment.rendering = _Rendering(marks)
        try:
            context = self._template.new_context(self._globals | variables, shared=True)
            text = rendering.collect(self._template.root_render_func(context))
        except (RecursionError, MemoryError) as error:
            raise TemplateFailure(f"it needs too much ({type(error).__name__})") from error
        except Exception as error:  # a program of anyone's fails in any way
            raise TemplateFailure(str(error) or type(error).__name__) from error
        return text, rendering.num_marked


def _take_marks(text: str, opening: str, closing: str) -> tuple[str, list[Span]]:
    """Take the marks out of a text, and say where they were."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, part in enumerate(text.split(opening)):
        marked, found, rest = part.partition(closing) if number else ("", "", part)
        if number:
            if not found:
                raise TemplateFailure("its generation blocks lie in each other")
            spans.append((length, length + len(marked)))
        pieces += (marked, rest)
        length += len(marked) + len(rest)
    return "".join(pieces), spans


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
