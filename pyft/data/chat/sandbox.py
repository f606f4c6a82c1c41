"""Render chat templates, which are other people's programs, where they can do no harm.

Jinja's immutable sandbox (as in transformers: trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, `tojson`) stops code. What it leaves out is here:

- limits (sandbox_limits.py), the same in every process and thread: whatever makes a value passes a Meter;
- `{% generation %} .. {% endgeneration %}`, whose places in the output are reported. A character before and
  after its text tells where that went: into a macro, a variable, a filter.

Calls, filters and `* % **` pass the Environment anyway; the rest is led there by the syntax tree:

    {% for m in messages %}              {% for m in messages | _rounds %}
    a + b   [a, b]   s[1:]   a in b      (a + b) | _made   [a, b] | _made   s[1:] | _made   (a in b) | _made
    a ~ b   f(*a)                        [a, b] | join     f(*(a | list))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from pyft.data.chat import sandbox_limits as limits
from pyft.data.tokenizers.text import Span

_MARKS = ("\ufdd0", "\ufdd1")
"""Characters that Unicode keeps out of texts: before and after a generation, but for a conversation that has
them."""
_OTHER_MARKS = range(0x100000, 0x10FFFE)
_PRIVATE_ESCAPES = re.compile(r"\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")
_LONGEST_MESSAGE = _LONGEST_DATE_FORMAT = 1000
_LONGEST_CHAIN = 8
_DICT_ATTRIBUTES = frozenset(dir(dict))
_PLAIN = frozenset((str, Markup, list, tuple, dict, int, float, bool, range))
_JINJAS_OWN = ("_loop_vars", "_block_vars")
"""Arguments that Jinja adds to a call, and takes out again."""
_METER: ContextVar[limits.Meter] = ContextVar("meter")
"""The meter of the rendering under way; without one, while a template is compiled, nothing metered runs."""


class TemplateFailure(Exception):
    """The template could not be parsed, refused the conversation, or went over a limit."""


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.FilterBlock(body, _filter("_mark", None), lineno=line)


class _MeterTree(NodeTransformer):
    """Leads through a filter what the environment would not see."""

    def visit(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node, nodes.For):
            node.iter = _filter("_rounds", node.iter)
        elif isinstance(node, nodes.Concat):
            return _filter("join", nodes.List(node.nodes, lineno=node.lineno))
        elif isinstance(node, nodes.Add) and 0 < _count_sums(node.left) < _LONGEST_CHAIN:
            node.left = node.left.node
        elif getattr(node, "dyn_args", None) is not None:
            node.dyn_args = _filter("list", node.dyn_args)
        match node:
            case nodes.Compare() if not _takes_long(node):
                return node
            case nodes.Add() | nodes.List() | nodes.Tuple(ctx="load") | nodes.Dict() | nodes.Compare():
                return _filter("_made", node)
            case nodes.Getitem(arg=nodes.Slice()) | nodes.Test(name="in"):
                return _filter("_made", node)
        return node


def _takes_long(node: nodes.Compare) -> bool:
    """Whether it searches, or compares values that may both be long."""
    parts = (node.expr, *(operand.expr for operand in node.ops))
    is_search = any(operand.op in ("in", "notin") for operand in node.ops)
    return is_search or not any(isinstance(part, nodes.Const) for part in parts)


def _count_sums(node: nodes.Node) -> int:
    """Count the sums of `a + b + .. + z`, of which the whole is metered."""
    number, node = 0, node.node if isinstance(node, nodes.Filter) and node.name == "_made" else node
    while isinstance(node, nodes.Add):
        number, node = number + 1, node.left
    return number


def _filter(name: str, node: nodes.Expr | None) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node and node.lineno)


class _Namespace(Namespace):
    """A namespace that does not print what it holds: namespaces that hold each other would print for ever."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with everything counted."""

    intercepted_binops = frozenset({"*", "%", "**"})

    def __init__(self, marks: tuple[str, str]) -> None:
        as_transformers = {"trim_blocks": True, "lstrip_blocks": True}
        extensions = [_Generation, loopcontrols]
        super().__init__(**as_transformers, finalize=_write, extensions=extensions, optimized=False)
        safe = (self.filters | {"tojson": _to_json}).items()
        self.filters = {name: _metered(name, f) for name, f in safe if name not in limits.UNSAFE_FILTERS}
        self.filters["_mark"] = lambda text: f"{marks[0]}{text}{marks[1]}"
        self.filters["_made"] = lambda value: _METER.get().take(value)
        self.filters["_rounds"] = lambda values: _METER.get().count_rounds(values)
        del self.globals["lipsum"]
        own = {"namespace": _Namespace, "raise_exception": _raise_exception, "strftime_now": _format_now}
        self.globals |= own

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what was written into a buffer (Jinja's generated code looks this name up)."""
        return _METER.get().take(limits.collect(pieces))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        limits.check_operation(operator, left, right)
        return _METER.get().take(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_plain = type(obj) in _PLAIN
        return attr in limits.SAFE_METHODS if is_plain else super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # The way of nearly every `message.role`, without the exceptions that Jinja's own way goes through.
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, missing)
        elif type(obj) in (LoopContext, _Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, missing)
        else:
            return super().getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute) if value is missing else value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str) and method.__name__ in limits.METHOD_SIZES:
            args = _settle(args)
            named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
            limits.check_size(limits.METHOD_SIZES[method.__name__](text, *args, **named))
        elif isinstance(__obj, LoopContext):
            args = map(_METER.get().count_rounds, args)
        return _METER.get().take(super().call(__context, __obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _MeterTree().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    size = limits.FILTER_SIZES.get(name)
    num_passed = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if size is not None:
            args = _settle(args)
            limits.check_size(size(*args[num_passed:], **kwargs))
        return _METER.get().take(function(*args, **kwargs))

    return run


def _settle(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Go through what can be gone through once only, so that it can be measured."""
    return tuple([list(value) if hasattr(value, "__next__") else value for value in args])


def _write(value: Any) -> str:
    """Take what is written out; texts were taken when they were made."""
    if isinstance(value, str):
        return value
    return _METER.get().take(str(_METER.get().take(value)))


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _format_now(format: str) -> str:
    limits.refuse(len(format) > _LONGEST_DATE_FORMAT, "its date format is very long")
    return datetime.now().strftime(format)


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    limits.check_width(indent)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    is_plain = indent is None and separators is None
    text = encoder.encode(value) if is_plain else limits.collect(encoder.iterencode(value))
    # Placeholders (see rendering.py) stay what they are: they stand for something else.
    return _PRIVATE_ESCAPES.sub(lambda match: json.loads(f'"{match[0]}"'), text) if ensure_ascii else text


@lru_cache(maxsize=64)
def _parse(source: str, marks: tuple[str, str]) -> tuple[jinja2.Template, dict[str, Any]]:
    if len(source) > limits.MAX_SOURCE_CHARACTERS:
        raise TemplateFailure(f"it is longer than {limits.MAX_SOURCE_CHARACTERS} characters")
    try:
        template = _Environment(marks).from_string(source)
        return template, dict(template.globals)
    except Exception as error:  # Python's own compiler refuses some, too
        line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateFailure(f"it is not valid Jinja{line}: {error}") from error


def check_syntax(source: str) -> None:
    """Refuse a template that cannot be parsed; rendering it later does not parse it again."""
    _parse(source, _MARKS)


def render_template(source: str, variables: dict[str, Any]) -> tuple[str, list[Span]]:
    """Render with `variables`, which are plain strings, numbers, lists and dicts.

    Returns the text, and the character spans of its generation blocks. Any number of threads may do so.
    """
    text, marks = _render(source, variables, _MARKS), _MARKS
    if not any(mark in text for mark in marks):
        return text, []
    known = source + json.dumps(variables, ensure_ascii=False)
    if any(mark in known for mark in marks):
        unused = (chr(code) for code in _OTHER_MARKS if chr(code) not in known)
        marks = (next(unused), next(unused))
        text = _render(source, variables, marks)
    return _take_marks(text, *marks)


def _render(source: str, variables: dict[str, Any], marks: tuple[str, str]) -> str:
    template, known = _parse(source, marks)
    token = _METER.set(limits.Meter())
    try:
        context = template.new_context(known | variables, shared=True)
        return limits.collect(template.root_render_func(context))
    except (RecursionError, MemoryError) as error:
        raise TemplateFailure(f"it needs too much ({type(error).__name__})") from error
    except Exception as error:  # a program of anyone's fails in any way
        raise TemplateFailure(str(error)[:_LONGEST_MESSAGE] or type(error).__name__) from error
    finally:
        _METER.reset(token)


def _take_marks(text: str, opening: str, closing: str) -> tuple[str, list[Span]]:
    """Take the marks out of a text, and say where they were."""
    first, *parts = text.split(opening)
    pieces, spans, length = [first], [], len(first)
    for part in parts:
        marked, found, rest = part.partition(closing)
        if not found:
            raise TemplateFailure("its generation blocks are nested")
        spans.append((length, length + len(marked)))
        pieces += (marked, rest)
        length += len(marked) + len(rest)
    return "".join(pieces), spans
