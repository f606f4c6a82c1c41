"""Render chat templates, which are other people's programs, where they can do no harm.

Jinja's immutable sandbox (as in transformers: trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, `tojson`) stops code. What it leaves out is here:

- limits (sandbox_limits.py), the same in every process and thread: whatever makes a value passes a Meter;
- `{% generation %} .. {% endgeneration %}`, whose places in the output are reported. A character before and
  after its text tells where that went: into a macro, a variable, a filter.

Calls, filters and `* % **` pass the Environment anyway; the rest is led there by the syntax tree:

    {% for m in messages %}      {% for m in messages | _rounds %}
    a + b                        (a + b) | _made, a long chain [a, b, ..] | _add
    a ~ b                        [a, b] | _concat
    [a, b]   s[1:]   a in b      [a, b] | _made    s[1:] | _made    (a in b) | _made
    f(*a)                        f(*(a | list))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, reduce, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer

from pyft.data.chat import sandbox_limits as limits

_MARKS = ("\ufdd0", "\ufdd1")
"""Characters that Unicode keeps out of texts: before and after a generation, but for a conversation that has
them."""
_OTHER_MARKS = range(0x100000, 0x10FFFE)
_PRIVATE_ESCAPES = re.compile(r"\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")
_MAX_DATE_FORMAT = 1000
_LONGEST_MESSAGE = 1000
_SHORT_CHAIN = 8
_DICT_ATTRIBUTES = frozenset(dir(dict))
_JINJAS_OWN = ("_loop_vars", "_block_vars")
"""Arguments that Jinja adds to a call, and takes out again."""
_METER: ContextVar[limits.Meter] = ContextVar("meter")
"""The meter of the rendering under way; without one, while a template is compiled, nothing metered runs."""

Span = tuple[int, int]


class TemplateFailure(Exception):
    """The template could not be parsed, refused the conversation, or went over a limit."""


class _Generation(Extension):
    """The block `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.FilterBlock(body, _filter("_mark", None), lineno=line)


class _MeterTree(NodeTransformer):
    """Leads through a filter what the environment would not see."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter("_rounds", node.iter)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        line, operands = node.lineno, [node.right]
        while isinstance(node.left, nodes.Add):
            node = node.left
            operands.append(node.right)
        parts = [self.visit(part) for part in (node.left, *reversed(operands))]
        if len(parts) > _SHORT_CHAIN:
            return _filter("_add", nodes.List(parts, lineno=line))
        return _filter("_made", reduce(lambda left, right: nodes.Add(left, right, lineno=line), parts))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _filter("_concat", nodes.List([self.visit(part) for part in node.nodes], lineno=node.lineno))

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filter("list", node.dyn_args)
        is_search = isinstance(node, nodes.Test) and node.name == "in"
        return _filter("_made", node) if is_search else node

    visit_Filter = visit_Test = visit_Call

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        parts = list(node.iter_child_nodes())
        self.generic_visit(node)
        if isinstance(node, nodes.Getitem):
            is_made = isinstance(node.arg, nodes.Slice)
        elif isinstance(node, nodes.Compare):
            parts = [node.expr, *(operand.expr for operand in node.ops)]
            is_search = any(operand.op in ("in", "notin") for operand in node.ops)
            is_made = is_search or not any(isinstance(part, nodes.Const) for part in parts)
        else:
            is_constant = all(isinstance(part, nodes.Const) for part in parts)
            is_made = getattr(node, "ctx", "load") == "load" and not is_constant
        return _filter("_made", node) if is_made else node

    visit_Tuple = visit_Dict = visit_Getitem = visit_Compare = visit_List


def _filter(name: str, node: nodes.Expr | None) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node and node.lineno)


class _Namespace(Namespace):
    """A namespace that does not print what it holds: namespaces that hold each other would print for ever."""

    def __repr__(self) -> str:
        return "<namespace>"


_OPEN = (LoopContext, _Namespace)
"""What shows everything it has but for names with an underscore."""
_SEQUENCES = (str, list, tuple)
_PLAIN = (*_SEQUENCES, dict, int, float, range)
_VIEWS = (range, *map(type, ({}.keys(), {}.values(), {}.items())))


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with everything counted."""

    intercepted_binops = frozenset({"*", "%", "**"})

    def __init__(self, marks: tuple[str, str]) -> None:
        extensions = [_Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=_write, extensions=extensions)
        self.filters["tojson"] = _to_json
        safe = [name for name in self.filters if name not in limits.UNSAFE_FILTERS]
        self.filters = {name: _metered(name, self.filters[name]) for name in safe}
        self.filters |= {
            "_mark": lambda text: f"{marks[0]}{text}{marks[1]}",
            "_rounds": lambda values: _METER.get().count_rounds(values),
            "_made": lambda value: _METER.get().take(value),
            "_add": _add,
            "_concat": _concat,
        }
        del self.globals["lipsum"]
        self.globals |= {
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _format_now,
        }

    def concat(self, pieces: Any) -> str:
        """Join what was written into a buffer (Jinja's generated code looks this name up)."""
        pieces = list(pieces)
        limits.check_size(sum(map(len, pieces)))
        return _METER.get().take("".join(pieces))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        limits.check_operation(operator, left, right)
        return _METER.get().take(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_plain = isinstance(obj, _PLAIN)
        return attr in limits.SAFE_METHODS if is_plain else super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # The way of nearly every `message.role`, without the exceptions that Jinja's own way goes through.
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, missing)
        elif (kind is str and attribute in limits.SAFE_METHODS) or (kind in _OPEN and attribute[0] != "_"):
            value = getattr(obj, attribute, missing)
        else:
            return super().getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute) if value is missing else value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str) and (size := limits.METHOD_SIZES.get(method.__name__)):
            args = tuple(map(_settle, args))
            named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
            limits.check_size(size(text, *args, **named))
        elif isinstance(__obj, LoopContext):
            args = tuple(map(meter.count_rounds, args))
        return meter.take(super().call(__context, __obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _MeterTree().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    size = limits.FILTER_SIZES.get(name)
    num_passed = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        if size is not None:
            args = (*args[:num_passed], *map(_settle, args[num_passed:]))
            limits.check_size(size(*args[num_passed:], **kwargs))
        return meter.take(function(*args, **kwargs))

    return run


def _settle(value: Any) -> Any:
    """Go through what can be gone through once, or cannot be measured."""
    is_iterator = hasattr(value, "__next__") and not isinstance(value, LoopContext)
    return list(value) if is_iterator or isinstance(value, _VIEWS) else value


def _add(operands: list[Any]) -> Any:
    limits.check_size(sum([len(value) for value in operands if isinstance(value, _SEQUENCES)]))
    total = operands[0]
    for value in operands[1:]:
        total = total + value
    return _METER.get().take(total)


@jinja2.pass_eval_context
def _concat(eval_context: nodes.EvalContext, operands: list[Any]) -> str:
    limits.check_size(sum(map(limits.measure, operands)))
    return _METER.get().take((markup_join if eval_context.autoescape else str_join)(operands))


def _write(value: Any) -> str:
    """Take what is written out; texts were taken when they were made."""
    if isinstance(value, str):
        return value
    meter = _METER.get()
    return meter.take(str(meter.take(value)))


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _format_now(format: str) -> str:
    if len(format) > _MAX_DATE_FORMAT:
        raise SecurityError("its date format is very long")
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    limits.check_width(indent)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None and separators is None:
        text = encoder.encode(value)
    else:
        pieces, size = [], 0
        for piece in _METER.get().count_rounds(encoder.iterencode(value)):
            size += len(piece)
            limits.check_size(size)
            pieces.append(piece)
        text = "".join(pieces)
    if ensure_ascii:
        # Placeholders (see rendering.py) stay what they are: they stand for something else.
        return _PRIVATE_ESCAPES.sub(lambda match: json.loads(f'"{match[0]}"'), text)
    return text


@lru_cache(maxsize=64)
def _compile(source: str, marks: tuple[str, str]) -> tuple[jinja2.Template, dict[str, Any]]:
    if len(source) > limits.MAX_SOURCE_CHARACTERS:
        raise TemplateFailure(f"it is longer than {limits.MAX_SOURCE_CHARACTERS} characters")
    try:
        template = _Environment(marks).from_string(source)
        return template, dict(template.globals)
    except Exception as error:  # Python's own compiler refuses some, too
        line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateFailure(f"it is no valid Jinja{line}: {error}") from error


class CompiledTemplate:
    """A parsed template that can be rendered many times, from several threads too."""

    def __init__(self, source: str) -> None:
        self._source = source
        _compile(source, _MARKS)

    def render(self, variables: dict[str, Any]) -> tuple[str, list[Span]]:
        """Render with `variables`, which are plain strings, numbers, lists and dicts.

        Returns the text, and the character spans of its generation blocks.
        """
        text, marks = self._render(variables, _MARKS), _MARKS
        if not any(mark in text for mark in marks):
            return text, []
        known = self._source + json.dumps(variables, ensure_ascii=False)
        if any(mark in known for mark in marks):
            unused = (chr(code) for code in _OTHER_MARKS if chr(code) not in known)
            marks = (next(unused), next(unused))
            text = self._render(variables, marks)
        return _take_marks(text, *marks)

    def _render(self, variables: dict[str, Any], marks: tuple[str, str]) -> str:
        template, known = _compile(self._source, marks)
        token = _METER.set(limits.Meter())
        pieces, length = [], 0
        try:
            context = template.new_context(known | variables, shared=True)
            for piece in template.root_render_func(context):
                length += len(piece)
                if length > limits.MAX_CHARACTERS:
                    limits.check_size(length)
                pieces.append(piece)
        except (RecursionError, MemoryError) as error:
            raise TemplateFailure(f"it needs too much ({type(error).__name__})") from error
        except Exception as error:  # a program of anyone's fails in any way
            raise TemplateFailure(str(error)[:_LONGEST_MESSAGE] or type(error).__name__) from error
        finally:
            _METER.reset(token)
        return "".join(pieces)


def _take_marks(text: str, opening: str, closing: str) -> tuple[str, list[Span]]:
    """Take the marks out of a text, and say where they were."""
    first, *parts = text.split(opening)
    pieces, spans, length = [first], [], len(first)
    for part in parts:
        marked, found, rest = part.partition(closing)
        if not found:
            raise TemplateFailure("its generation blocks lie in each other")
        spans.append((length, length + len(marked)))
        pieces += (marked, rest)
        length += len(marked) + len(rest)
    return "".join(pieces), spans


def compile_template(source: str) -> CompiledTemplate:
    """Parse a template's source; equal sources are parsed once."""
    return CompiledTemplate(source)
