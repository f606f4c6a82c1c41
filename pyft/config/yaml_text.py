"""Recipes as text: a strict YAML reader, and a writer.

Reading keeps to plain values (null, booleans, numbers, text, lists, mappings with text keys). It differs from
`yaml.safe_load`: equal keys are refused with both lines, `1e-5` is a number, a date stays text, every mistake
has a line and column, and depth and size are bounded (aliases are copied out, so a small file could otherwise
become a huge one). What `dump_yaml` writes reads the same here and with `yaml.safe_load`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pyft.config.key_path import KeyPath, show_path
from pyft.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_VALUES = 20_000

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_FIXES = (
    ("cannot start any token", "indent with spaces, and put text with special characters in quotes"),
    ("alias", "put text that begins with * or & in quotes"),
    ("another document", "keep one recipe per file, with no second '---'"),
    ("mapping values are not allowed", "check the indentation; put text that holds ': ' in quotes"),
    ("end of stream", "close the quote or bracket that is still open"),
    ("expected ','", "close the quote or bracket that is still open, and put special characters in quotes"),
    ("nested deeper", "write it flatter"),
)


@dataclass
class Document:
    """A parsed text: its plain value, and the line (from 1) on which each key and list entry stands."""

    data: Any
    source: str
    lines: dict[KeyPath, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser, with a bound on nesting and scientific floats without a dot."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes shared values twice, not as aliases; quotes text that `_Loader` would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag[len(_PREFIX) :] not in ("timestamp", "value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+.0123456789"))


def read_document(path: Path) -> Document:
    """Read a YAML file; its value is None if it has no content.

    A file that is absent, a folder, too large, not UTF-8 or not such YAML raises ConfigError.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder (recipe): give a recipe file, such as a run's config.yaml")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"no such file (recipe {path}): check the path") from None
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror} (recipe {path}): check the file") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"larger than {MAX_BYTES} bytes (recipe {path}): is this a data file? give a recipe"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"not UTF-8 ({path}:{line}): save the recipe as UTF-8 text") from None
    return parse_text(text, str(path))


def parse_text(text: str, source: str) -> Document:
    """Parse one YAML document; errors call it `source`."""
    return _Builder(source).document(_compose(text, source))


def parse_value(text: str, source: str) -> Any:
    """Parse the value of an override; unlike in a file, a `#` is an error, as it would cut the value."""
    node = _compose(text, source)
    if node is None or text[node.end_mark.index :].strip():
        raise ConfigError(f"everything from '#' on would be a comment ({source}): leave it out")
    return _Builder(source).document(node).data


def dump_yaml(value: Any) -> str:
    """Write a plain value as YAML, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise ConfigError(
            f"character U+{error.character:04X} is not allowed ({source}:{line}:{column}): remove it"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        fix = next((fix for part, fix in _FIXES if part in problem), "correct the YAML there")
        raise ConfigError(f"{problem} ({_place(source, mark)}): {fix}") from None


def _place(source: str, mark: yaml.Mark) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}"


class _Builder:
    """Turns composed nodes into plain values, and collects every mistake on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.scalars = _Loader("")
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.num_values = 0

    def document(self, node: yaml.Node | None) -> Document:
        data = None if node is None else self.value(node, ())
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        return Document(data, self.source, self.lines)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            limit = f"{MAX_VALUES} values" if self.num_values > MAX_VALUES else f"{MAX_DEPTH} levels"
            place = _place(self.source, node.start_mark)
            raise ConfigError(f"more than {limit}, aliases written out ({place}): use fewer aliases (*name)")
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(_PREFIX, "!!")
            self.problem(f"tag {tag} is not allowed in a recipe", node, "remove the tag, write a plain value")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.entry(child, (*path, index)) for index, child in enumerate(node.value)]
        return self.scalar(node)

    def entry(self, node: yaml.Node, path: KeyPath, line: int | None = None) -> Any:
        self.lines[path] = node.start_mark.line + 1 if line is None else line
        return self.value(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            key = self.key(key_node)
            if key is None:
                continue
            line = key_node.start_mark.line + 1
            if key in first_lines:
                shown = show_path((*path, key))
                self.problem(
                    f"key {shown} is given twice, first in line {first_lines[key]}", key_node, "keep one"
                )
                continue
            first_lines[key] = line
            if key_node.tag == _PREFIX + "merge":
                merged.append(value_node)
            else:
                result[key] = self.entry(value_node, (*path, key), line)
        for key_node, value_node in self.merged_pairs(merged):
            key = self.key(key_node)
            if key is not None and key not in result:
                result[key] = self.entry(value_node, (*path, key), key_node.start_mark.line + 1)
        return result

    def merged_pairs(self, nodes: list[yaml.Node], depth: int = 0) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield the pairs that `<<` brings in, nearest first; of equal keys the first one counts."""
        for node in nodes:
            self.num_values += len(node.value) if isinstance(node, yaml.CollectionNode) else 1
            if depth > MAX_DEPTH or self.num_values > MAX_VALUES:
                place = _place(self.source, node.start_mark)
                raise ConfigError(f"too many merges (<<) inside one another ({place}): use fewer")
            if isinstance(node, yaml.SequenceNode):
                yield from self.merged_pairs(node.value, depth + 1)
            elif isinstance(node, yaml.MappingNode):
                inner = [value for key, value in node.value if key.tag == _PREFIX + "merge"]
                yield from (pair for pair in node.value if pair[0].tag != _PREFIX + "merge")
                yield from self.merged_pairs(inner, depth + 1)
            else:
                self.problem("<< merges mappings only", node, "give it an alias of a mapping (<<: *name)")

    def key(self, node: yaml.Node) -> str | None:
        if node.tag == _PREFIX + "merge":
            return "<<"
        if node.tag == _PREFIX + "str" and isinstance(node, yaml.ScalarNode):
            return str(node.value)
        read_as = f" ({node.value!r} is read as {node.tag.replace(_PREFIX, '')})"
        shown = read_as if isinstance(node.value, str) else ""
        self.problem(f"a key has to be text{shown}", node, "put it in quotes")
        return None

    def scalar(self, node: yaml.Node) -> Any:
        try:
            value = self.scalars.construct_object(node)
        except (ValueError, KeyError, OverflowError, yaml.YAMLError):
            kind = node.tag.replace(_PREFIX, "")
            what = f"{str(node.value)[:40]!r} is not a valid {kind}"
            self.problem(what, node, "correct it, or put text in quotes")
            return None
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            self.problem("half a character (a lone surrogate)", node, "write the character itself")
        return value

    def problem(self, what: str, node: yaml.Node, fix: str) -> None:
        self.problems.append(f"{what} ({_place(self.source, node.start_mark)}): {fix}")
