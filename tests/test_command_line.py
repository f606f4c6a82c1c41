"""The commands as a person calls them: help, mistakes, exit codes, from the clone's root and from elsewhere.

Each call is a process of its own that lists what it imports, so that an answer is known to come before torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from layering import HEAVY

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    name
    for name in ("train", "data", "chat", "merge", "recipes", "env")
    if (ROOT / "pyft" / f"{name}.py").exists() or (ROOT / "pyft" / name / "__main__.py").exists()
]
GOOD = "model: {name_or_path: ./m}\ndata: {train: [{path: rows.jsonl}]}\n"


@dataclass(frozen=True)
class Answer:
    """What a command did: exit code, standard output, lines of standard error, heavy packages it imported."""

    code: int
    out: str
    errors: list[str]
    heavy: set[str]


def call(command: str, *arguments: str, folder: Path = ROOT) -> Answer:
    environment = dict(os.environ)
    try:
        importlib.metadata.version("pyft")
    except importlib.metadata.PackageNotFoundError:
        environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"pyft.{command}", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    imported: set[str] = set()
    errors: list[str] = []
    for line in result.stderr.splitlines():
        if line.startswith("import time:"):
            imported.add(line.rpartition("|")[2].strip())
        else:
            errors.append(line)
    assert "pyft.command" in imported, "the list of imports is not read"
    return Answer(result.returncode, result.stdout, errors, imported & HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["clone", "elsewhere"])
def test_help_answers_before_anything_heavy(command: str, elsewhere: bool, tmp_path: Path) -> None:
    answer = call(command, "--help", folder=tmp_path if elsewhere else ROOT)
    assert (answer.code, answer.errors, answer.heavy) == (0, [], set())
    assert f"usage: python -m pyft.{command}" in answer.out and "--debug" in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_errors(command: str) -> None:
    answer = call(command, "--no-such-option")
    assert (answer.code, answer.out, answer.heavy) == (2, "", set())
    assert len(answer.errors) == 1 and answer.errors[0].startswith("error: ")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["clone", "elsewhere"])
def test_recipes_are_listed(elsewhere: bool, tmp_path: Path) -> None:
    answer = call("recipes", folder=tmp_path if elsewhere else ROOT)
    assert (answer.code, answer.errors, answer.heavy) == (0, [], set())
    assert "sft_qlora" in answer.out


def test_templates_are_shown_without_a_model(tmp_path: Path) -> None:
    answer = call("data", "templates", "qwen_chat", folder=tmp_path)
    assert (answer.code, answer.errors) == (0, [])
    assert "⟦Mount Everest.<|im_end|>⟧" in answer.out
    assert not answer.heavy & {"torch", "transformers", "datasets", "pyarrow"}


def mistakes(folder: Path, content: bytes | str | None, *overrides: str, command: str = "train") -> list[str]:
    """Run a wrong recipe from the folder it lies in; gives its error lines after checking their form."""
    if content is not None:
        raw = content.encode() if isinstance(content, str) else content
        (folder / "我的 recipe.yaml").write_bytes(raw)
    answer = call(command, "我的 recipe.yaml", *overrides, folder=folder)
    assert answer.code == 2
    assert "Traceback" not in answer.out + "".join(answer.errors)
    assert all(line.startswith("error: ") for line in answer.errors), answer.errors
    assert answer.heavy == set()
    return answer.errors


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such recipe"),
        ("", "is empty"),
        ("[1, 2]", "is a list"),
        (b"mode: \xff\n", "not UTF-8 (我的 recipe.yaml:1)"),
        ("mode: sft\nmodel: {a: [}\n", "(我的 recipe.yaml:2:13)"),
        ("a: 1\nb: 2\na: 3\n", "key a is given twice, first in line 1 (我的 recipe.yaml:3:1)"),
        ("a: !!python/object/apply:os.system [x]\n", "!!python/object/apply:os.system"),
        (GOOD + "train: {warmup_ratio: 0.1}\n", "write train.warmup_steps"),
        (GOOD + "train: {learning_rate: fast}\n", "train.learning_rate is the text 'fast'"),
        (GOOD.replace("rows.jsonl", "rows.jsonl, formt: text"), "unknown key data.train[0].formt"),
        (GOOD.replace("./m", "./m, quantization: nf4"), "there is no adapter"),
        (GOOD.replace("}]}", "}], max_length: null}"), "data.packing is true and data.max_length is null"),
        (GOOD.replace("}]}", "}], streaming: true}"), "data.streaming is true and train.max_steps is null"),
        (GOOD + "dataset_map_fn: alpaca\n", "write data.train[0].map"),
    ],
)
def test_a_wrong_recipe_is_answered_with_one_line(
    tmp_path: Path, content: bytes | str | None, part: str
) -> None:
    (line,) = mistakes(tmp_path, content)
    assert part in line


@pytest.mark.parametrize("command", [name for name in ("train", "data") if name in COMMANDS])
def test_all_mistakes_at_once(tmp_path: Path, command: str) -> None:
    lines = mistakes(tmp_path, GOOD + "lr: 1\nmode: dpo\n", "adapter.rank=3", "train.seed=x", command=command)
    assert len(lines) == 4


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "我的 recipe.yaml").mkdir()
    (line,) = mistakes(tmp_path, None)
    assert "is a folder" in line


def test_overrides_and_options_in_any_order(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, GOOD, "train.seed=1", "train.lr=2", command="data")
    answer = call("data", "--json", "train.lr=2", "--num-samples", "3", folder=tmp_path)
    assert "write train.learning_rate" in line
    # Where every word is an override, the first is taken for the recipe.
    assert answer.code == 2 and "no such recipe (recipe train.lr=2)" in answer.errors[0]
    answer = call("data", "--json", "我的 recipe.yaml", "--num-samples", "3", "train.lr=2", folder=tmp_path)
    assert answer.errors == [line]
    answer = call("data", "train.lr=2", "--num-samples", "3", "我的 recipe.yaml", "--json", folder=tmp_path)
    assert answer.errors == [line]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD + "lr: 1\n")
    answer = call("train", "r.yaml", "--debug", folder=tmp_path)
    assert answer.code == 2
    assert "Traceback (most recent call last):" in answer.errors
    assert answer.errors[-1].startswith("error: unknown key lr")
