"""Write the references in docs/ that come from the code; `--check` only says which are stale.

    python docs/generate.py

What stands between `<!-- NAME -->` and `<!-- end -->` in a page is written; tests/test_docs.py fails while a
page is not what this writes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from pyft import errors
from pyft.config.modes import MODES
from pyft.config.schema import (
    LARGEST_COUNT,
    AdapterConfig,
    DataConfig,
    DataSource,
    ModelConfig,
    Section,
    Stage,
    TokenizerConfig,
    TrainConfig,
    sections_in,
)
from pyft.config.shipped import shipped_recipes
from pyft.data.reading.files import COMPRESSIONS, KINDS
from pyft.data.rows.field_maps import FIELD_MAPS
from pyft.data.show.templates import list_templates

DOCS = Path(__file__).resolve().parent
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("Top level", Stage),
    ("model", ModelConfig),
    ("model.tokenizer", TokenizerConfig),
    ("adapter", AdapterConfig),
    ("data", DataConfig),
    ("data.train[]", DataSource),
    ("train", TrainConfig),
)


def cell(text: str) -> str:
    """Make a text fit into a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def describe_type(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """Say what a field takes, without null."""
    if metadata and get_origin(annotation) is None and annotation in (int, float):
        return describe_number(annotation, metadata)
    if hasattr(annotation, "__metadata__"):
        inner, *more = get_args(annotation)
        return describe_type(inner, [*more, *metadata])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {describe_type(arguments[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    if arguments:
        kinds = [describe_type(argument, metadata) for argument in arguments if argument is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, "mapping")


def describe_number(kind: type, metadata: tuple[Any, ...] | list[Any]) -> str:
    """Say which numbers a field takes."""
    flat = [bound for item in metadata for bound in (getattr(item, "metadata", None) or [item])]
    words = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
    bounds = [
        f"{words[type(bound)][0]} {getattr(bound, words[type(bound)][1])}"
        for bound in flat
        if type(bound) in words and getattr(bound, words[type(bound)][1]) not in (LARGEST_COUNT, 2**32)
    ]
    return ", ".join(["whole number" if kind is int else "number", *bounds])


def describe_field(key: str, field: FieldInfo) -> str:
    """Write a row of a table: key, type, default, meaning."""
    kind = describe_type(field.annotation, field.metadata)
    if key == "mode":
        kind = ", ".join(f"`{name}`" for name in MODES)
    if NoneType in get_args(field.annotation):
        kind += ", or `null`"
    if any(isinstance(item, MinLen) and item.min_length for item in field.metadata) and "list" in kind:
        kind += ", not empty"
    default = "required" if field.is_required() else f"`{show_default(field)}`"
    return f"| `{key}` | {kind} | {default} | {cell(field.description or '')} |"


def show_default(field: FieldInfo) -> str:
    """Write a default as a recipe would."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "{}"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def recipes() -> str:
    """List the shipped recipes with their first lines."""
    lines = ["| recipe | |", "|---|---|"]
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"| `{name}` | {cell(first.removeprefix('#'))} |")
    return "\n".join(lines)


def keys() -> str:
    """Write a table of keys for each section of the schema."""
    lines = []
    for title, section in SECTIONS:
        lines += ["", f"## {title if section is Stage else f'`{title}`'}", ""]
        if section is not Stage:
            about = cell((section.__doc__ or "").partition("\n\n")[0]).rpartition("` ")[2]
            lines += [about[:1].upper() + about[1:], ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            if section is Stage and sections_in(field.annotation):
                lines.append(f"| `{key}` | mapping | | see [`{key}`](#{key}) |")
            elif section is Stage and key == "name":
                lines.append(
                    "| `name` | text | its mode | Inside `stages`: name of the stage and its folder. |"
                )
            else:
                lines.append(describe_field(key, field))
    return "\n".join(lines[1:])


def exit_codes() -> str:
    """List what the commands end with, from the classes of errors."""
    known = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    coded = {kind.exit_code: kind for kind in known if "exit_code" in vars(kind) and kind.exit_code > 1}
    lines = [
        "| exit code | |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | a mistake of pyft's own: `--debug` shows where |",
    ]
    lines += [
        f"| {code} | {cell((coded[code].__doc__ or '').partition(chr(10))[0])} |" for code in sorted(coded)
    ]
    lines.append("| 130, 143 | stopped by Ctrl-C or SIGTERM, after what had to be saved was saved |")
    return "\n".join(lines)


def file_kinds() -> str:
    """List the suffixes that are read."""
    kinds = ", ".join(f"`{suffix}`" for suffix in KINDS)
    packed = " or ".join(f"`{suffix}`" for suffix in COMPRESSIONS)
    return f"pyft reads {kinds}; all but parquet and arrow also with {packed} after it."


def field_maps() -> str:
    """List the ready-made field maps."""
    lines = ["| map | format | the format's key: the file's key |", "|---|---|---|"]
    for name, found in FIELD_MAPS.items():
        renamed = ", ".join(f"{key}: {own}" for key, own in found.columns.items())
        lines.append(f"| `{name}` | {found.format} | {renamed} |")
    return "\n".join(lines)


def templates() -> str:
    """List the built-in chat templates as the command does."""
    listed = list_templates().partition("\n\n")[0]
    return "```\n" + "\n".join(line.rstrip() for line in listed.split("\n")) + "\n```"


BLOCKS = {
    "recipes": recipes,
    "keys": keys,
    "exit codes": exit_codes,
    "file kinds": file_kinds,
    "field maps": field_maps,
    "templates": templates,
}


def filled(text: str) -> str:
    """Fill the marked blocks of a page."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(BLOCKS)}) -->\n(?:.*?\n)??<!-- end -->", fill, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Return every page of docs/ as it has to be."""
    return {path: filled(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("*.md"))}


def main() -> int:
    """Write the stale pages, or with --check name them."""
    stale = [(path, text) for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    for path, text in stale:
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {'stale' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
