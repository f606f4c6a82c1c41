"""The import rules of the source tree, and a reader of imports that finds what breaks them.

Imports are read from the syntax tree; nothing is imported. An import inside a function counts for who may
import whom; only module-level ones count for what a module loads by being imported. `if TYPE_CHECKING:`
counts for neither, but for `TYPES_ONLY`: the pairs that may meet for types alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_DATA_FOLDERS = ("reading", "rows", "tokenizers", "chat", "encode", "prepared", "batches", "show")
"""The life of a row, in its order: each folder may import those before it."""

_GROUND = {"errors", "disk", "cpus"}
"""What data and run and the commands all need of the system; of pyft, only errors are under disk."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "disk": {"errors"},
    "cpus": set(),
    "command": _GROUND,
    "config": {"errors"},
    "recipes": {"errors", "command", "config"},
    **{
        f"data.{folder}": {*_GROUND, "config", *(f"data.{above}" for above in _DATA_FOLDERS[:place])}
        for place, folder in enumerate(_DATA_FOLDERS)
    },
    "data": {*_GROUND, "command", "config", "data"},
    "ops": set(),
    "run": {*_GROUND, "config"},
    "model": {*_GROUND, "config", "ops", "run"},
    "tasks": {*_GROUND, "config", "data", "ops", "model.forward", "model.heads"},
    "trainer": {*_GROUND, "config", "ops", "run"},
    "chat": {*_GROUND, "command", "config", "data.chat", "model", "run"},
    "merge": {*_GROUND, "command", "config", "data.chat", "model", "run"},
    "env": {*_GROUND, "command", "config", "ops"},
}
"""Part of pyft -> the parts it may import beside itself; the longest name that fits counts. One not here
(train, stages, assemble) may import any."""

TYPES_ONLY: dict[str, set[str]] = {"trainer": {"data.batches", "tasks"}}
ENTRY_POINTS = ("train", "stages", "assemble")
"""Parts that nothing else imports, but each other."""

NATIVE = "_pyft_C"
PLACES: dict[str, tuple[str, ...]] = {
    NATIVE: ("ops.native",),
    "datasets": ("data.reading",),
    "transformers": ("model", "data.tokenizers", "chat", "merge"),
}
"""Package -> the only places where it is imported, for types too."""

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "matplotlib",
    "jinja2",
    "pyarrow",
    "numpy",
    NATIVE,
}
COMMANDS = ("train", "chat", "merge", "data.__main__", "recipes.__main__", "env")
"""Modules run as `python -m pyft.<command>`."""
LIGHT = ("errors", "disk", "cpus", "command", "config", "recipes", "run.layout")
"""Parts whose modules load nothing heavy, however far one follows their imports."""


@dataclass
class Module:
    """What a module imports: names are absolute, `a.b` for `from a import b` as well as `a`."""

    name: str
    loaded: set[str] = field(default_factory=set)
    """At module level."""
    deferred: set[str] = field(default_factory=set)
    """Inside functions."""
    types: set[str] = field(default_factory=set)
    """Under `if TYPE_CHECKING:`."""


def read_tree(package: Path) -> dict[str, Module]:
    """Read all modules of a package, named from its own name on: `pyft.data.rows.formats`."""
    modules: dict[str, Module] = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        module = Module(name)
        _read(ast.parse(path.read_text(encoding="utf-8")), module, module.loaded, is_package)
        modules[name] = module
    return modules


def _read(node: ast.AST, module: Module, into: set[str], is_package: bool) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            into.update(alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, module.name, is_package)
            into.add(base)
            into.update(f"{base}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Call) and _is_import_call(child):
            into.update(arg.value for arg in child.args[:1] if isinstance(arg, ast.Constant))
            _read(child, module, into, is_package)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            _read(child, module, into if into is module.types else module.deferred, is_package)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                _read(ast.Module([statement], []), module, module.types, is_package)
            for statement in child.orelse:
                _read(ast.Module([statement], []), module, into, is_package)
        else:
            _read(child, module, into, is_package)


def _is_import_call(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("__import__", "import_module", "importlib.import_module")


def _absolute(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = name.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def is_in(name: str, places: Iterable[str]) -> bool:
    """Whether a dotted name is one of the places or inside one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def violations(modules: dict[str, Module], root: str = "pyft") -> list[str]:
    """List every breach of the rules, each as `module: what`."""
    found: list[str] = []
    for module in modules.values():
        found.extend(f"{module.name}: {breach}" for breach in _breaches(module, modules, root))
    for name in modules:
        local = name.removeprefix(root).removeprefix(".")
        if is_in(local, LIGHT) or local in COMMANDS:
            for heavy, trail in heavy_imports(name, modules):
                found.append(f"{name}: loads {heavy} through {' -> '.join(trail)}")
    found.extend(f"{' and '.join(circle)} import each other" for circle in circles(modules))
    return sorted(set(found))


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Find the groups of modules that reach each other by imports of any kind."""
    reached = {name: _reached(name, modules) for name in modules}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in modules
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(start: str, modules: dict[str, Module]) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        module = modules[queue.pop()]
        for target in (module.loaded | module.deferred | module.types) & modules.keys():
            # A package named on the way to something inside it is not an import of what it holds.
            if target not in found and not is_in(module.name, [target]):
                found.add(target)
                queue.append(target)
    return found


def _breaches(module: Module, modules: dict[str, Module], root: str) -> Iterator[str]:
    local = module.name.removeprefix(root).removeprefix(".")
    part = max((name for name in MAY_IMPORT if is_in(local, [name])), key=len, default=local.split(".")[0])
    for target in module.loaded | module.deferred | module.types:
        for package, places in PLACES.items():
            if is_in(target, [package]) and not is_in(local, places):
                yield f"imports {package}, which belongs in {', '.join(places)}"
        if is_in(target, ["tests", "bench"]):
            yield f"imports {target}"
        if target not in modules or target == root:
            continue
        inner = target.removeprefix(root + ".")
        if is_in(inner, ENTRY_POINTS) and part not in ENTRY_POINTS:
            yield f"imports {inner}, which nothing may import"
        allowed = MAY_IMPORT.get(part)
        if allowed is None or is_in(inner, [part]):
            continue
        if target in module.types and target not in module.loaded | module.deferred:
            allowed = allowed | TYPES_ONLY.get(part, set())
        # A package that holds only a docstring may be named on the way to what is allowed inside it.
        is_on_the_way = any(place.startswith(inner + ".") for place in allowed)
        if not is_in(inner, allowed) and not is_on_the_way:
            yield f"imports {inner}; {part} may import {', '.join(sorted(allowed)) or 'nothing of pyft'}"


def re_exports(package: Path, readers: Iterable[Path]) -> list[str]:
    """Find imports of names from a module that has them by an import itself.

    Args:
        package: the folder whose modules have the names.
        readers: folders whose files are read for imports.

    Returns:
        Each as `file: name is from module`.
    """
    taken: dict[str, dict[str, str]] = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
        taken[name] = {
            alias.asname or alias.name: node.module or ""
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package.name)
            for alias in node.names
        }
    found = []
    for path in sorted(file for folder in readers for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                passed_on = taken.get(node.module or "", {})
                found.extend(
                    f"{path}: {alias.name} is from {passed_on[alias.name]}, not {node.module}"
                    for alias in node.names
                    if alias.name in passed_on
                )
    return found


def heavy_imports(start: str, modules: dict[str, Module]) -> Iterator[tuple[str, list[str]]]:
    """Follow module-level imports, parent packages included, to every heavy package they reach."""
    trails: dict[str, list[str]] = {start: [start]}
    queue = [start]
    while queue:
        name = queue.pop(0)
        for target in sorted(modules[name].loaded | _parents(name)):
            if is_in(target, HEAVY):
                yield target.split(".")[0], trails[name]
            for reached in _parents(target) | {target}:
                if reached in modules and reached not in trails:
                    trails[reached] = [*trails[name], reached]
                    queue.append(reached)


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}
