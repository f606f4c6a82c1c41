"""How this project writes: words it does not use; imperative docstrings, no longer than their bodies."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pyft", "csrc", "tests", "bench", "docs")
PAGES = ("README.md", "CHANGELOG.md", "CMakeLists.txt", "setup.py")
SUFFIXES = {".py", ".md", ".yaml", ".jinja", ".h", ".cuh", ".cpp", ".cu", ".txt", ".sh"}

UNUSED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"(?:^|[.:] |\"\"\")They,": "name what they are",
    r"\bthose they come from included\b": "with those already read",
    r"\bGet ready\.": "say what is set up, or nothing",
    r"\bPut them together\.": "say what is built, or nothing",
    r"\bTakes the moment\b": "Record the state",
    r"\b(is|are|was|were|be|been) told of\b": "is reported, is named",
    r"\b(lest|nought|thereof|whereof|therein|hereby|upon)\b": "the word of today",
    r"\bbe it\b": "whether",
    r"\banew\b": "again, from the start",
    r"\bas far as may be\b": "where possible",
    r"\bwhat is begun\b|\bwhat was begun\b": "name the thing that was started",
}
"""What a native reader of the field would not write -> what to write instead."""

THIRD_PERSON = re.compile(
    r"(Accumulate|Add|Answer|Appl(?=ies)|Ask|Begin|Build|Call|Check|Choose|Clear|Close|Collect|Compare|Compute|"
    r"Convert|Cop(?=ies)|Count|Cut|Describe|Do(?=es)|Draw|Drop|Encode|End|Enter|Evaluate|Fill|Find|Follow|Forget|"
    r"Give|Go(?=es)|Hold|Judge|Keep|Know|Lay|Learn|Leave|Let|List|Load|Look|Make|Measure|Merge|Move|Open|Parse|"
    r"Pick|Prepare|Print|Put|Quantise|Raise|Read|Refuse|Remove|Render|Restore|Return|Run|Save|Say|See|Set|Show|"
    r"Split|Start|Stop|Store|Take|Tell|Train|Tr(?=ies)|Turn|Wait|Write)(s|es|ies)\b"
)
DOCSTRING_OF_ITS_OWN = {"Protocol", "ABC"}
"""Bases whose methods are described, not explained: there is no body to compare with."""


def texts() -> Iterator[tuple[str, str]]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    paths += [ROOT / page for page in PAGES]
    for path in paths:
        if path.suffix in SUFFIXES and path != Path(__file__) and "results" not in path.parts:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", UNUSED)
def test_words_this_project_does_not_use(pattern: str) -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, write: {UNUSED[pattern]}"
        for name, text in texts()
        for match in re.finditer(pattern, text, re.MULTILINE)
    ]
    assert not found, "\n".join(found)


def docstrings(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.Expr, bool]]:
    """Yield functions that have a docstring, it, and whether the function belongs to an interface."""
    interfaces = {
        method
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and DOCSTRING_OF_ITS_OWN & {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for method in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            assert isinstance(node.body[0], ast.Expr)
            yield node, node.body[0], node in interfaces


def is_too_long(function: ast.FunctionDef | ast.AsyncFunctionDef, text: ast.Expr) -> bool:
    assert function.end_lineno is not None and text.end_lineno is not None
    body = function.end_lineno - text.end_lineno
    return 0 < body < text.end_lineno - text.lineno + 1


def breaches(source: str, *, is_operation: bool = False) -> list[tuple[int, str]]:
    """Find docstrings in the third person, and those longer than the body they explain."""
    found = []
    for function, text, is_interface in docstrings(ast.parse(source)):
        first = ast.get_docstring(function) or ""
        if THIRD_PERSON.match(first):
            found.append((text.lineno, f"{first.split()[0]!r}: write it in the imperative"))
        is_public_operation = is_operation and not function.name.startswith("_")
        if is_too_long(function, text) and not is_interface and not is_public_operation:
            found.append((text.lineno, f"{function.name}: the docstring is longer than the body"))
    return sorted(found)


@pytest.mark.parametrize("folder", ["pyft", "bench", "tests", "setup.py"])
def test_docstrings(folder: str) -> None:
    base = ROOT / folder
    found = []
    for path in [base] if base.is_file() else sorted(base.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        is_operation = name.startswith("pyft/ops/")
        lines = breaches(path.read_text(encoding="utf-8"), is_operation=is_operation)
        found.extend(f"{name}:{line}: {what}" for line, what in lines)
    assert not found, "\n".join(found)


def test_the_checks_see_a_breach() -> None:
    assert breaches('def f():\n    """Reads it."""\n    return 1\n') == [
        (2, "'Reads': write it in the imperative")
    ]
    long = 'def f():\n    """Read it.\n\n    And more.\n    """\n    return 1\n'
    assert [line for line, _ in breaches(long)] == [2]
    assert breaches(long, is_operation=True) == []
    assert breaches("class C(Protocol):\n" + "".join(f"    {line}\n" for line in long.splitlines())) == []
    for word in ("Names", "Steps", "Labels", "Read", "Goes on", "Copies", "Tries"):
        is_verb = word in ("Goes on", "Copies", "Tries")
        assert bool(THIRD_PERSON.match(word)) == is_verb
