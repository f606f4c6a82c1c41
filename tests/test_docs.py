"""README, its Chinese twin and docs/: references are fresh, and the files, keys and options named exist."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyft.config.schema import known_names

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = [ROOT / name for name in READMES] + sorted((ROOT / "docs").glob("*.md"))
TREE = ROOT / "docs/how-it-is-built.md"
FIRST_COMMANDS = (
    "```bash\npip install . && python -m pyft.train quickstart\npip install '.[test]' && pytest\n```"
)
ids = {"ids": lambda page: page.name}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_references_are_fresh(generate: ModuleType) -> None:
    stale = [page.name for page, text in generate.pages().items() if text != read(page)]
    assert not stale, f"{stale}: run python docs/generate.py"


def test_every_key_and_generated_block_is_in_some_page(generate: ModuleType) -> None:
    everything = "".join(read(page) for page in PAGES)
    assert all(f"<!-- {name} -->" in everything for name in generate.BLOCKS)
    reference = read(ROOT / "docs/recipe.md")
    assert all(f"| `{name[-1]}` |" in reference for name in known_names())


def test_a_new_key_makes_the_reference_stale(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.BLOCKS, "keys", lambda: generate.keys() + "\n| `new` | | | |")
    assert any(text != read(page) for page, text in generate.pages().items())


@pytest.mark.parametrize("name", READMES)
def test_readmes_are_short_and_begin_alike(name: str) -> None:
    text = read(ROOT / name)
    assert text.count("\n") <= 120
    assert FIRST_COMMANDS in text


def test_the_readmes_say_the_same() -> None:
    """The same commands, links and examples, in the same order; only the comments behind commands differ."""
    one, other = (read(ROOT / name) for name in READMES)
    blocks = [
        [re.sub(r"\s+# .*", "", block) for block in re.findall(r"```\w*\n.*?```", text, re.DOTALL)]
        for text in (one, other)
    ]
    assert blocks[0] == blocks[1] and len(blocks[0]) >= 6
    links = [re.findall(r"\]\(((?:docs|csrc|bench)/[^)]+)\)", text) for text in (one, other)]
    assert links[0] == links[1] and set(links[0]) >= {f"docs/{page.name}" for page in PAGES[2:]}
    tests = [re.findall(r"`(tests/[^`]+)`", text) for text in (one, other)]
    assert tests[0] == tests[1] and tests[0]


@pytest.mark.parametrize("page", PAGES, **ids)
def test_files_named_exist(page: Path) -> None:
    text = read(page)
    linked = [page.parent / target for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", text)]
    named = [ROOT / path for path in re.findall(r"`((?:pyft|csrc|bench|docs|tests)/[\w./-]*)`", text)]
    assert [str(path) for path in linked + named if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, **ids)
def test_keys_named_exist(page: Path) -> None:
    keys = {".".join(name) for name in known_names()}
    named = re.findall(
        r"`?\b((?:model|adapter|data|train)\.[a-z_]+(?:\[\d*\])?(?:\.[a-z_]+)*)[`:= ]", read(page)
    )
    own = {re.sub(r"\[\d*\]", "", name) for name in named} - {"train.py", "model.safetensors"}
    assert sorted(own - keys) == []


@pytest.mark.parametrize("page", PAGES, **ids)
def test_commands_and_options_named_exist(page: Path) -> None:
    text = read(page)
    for command, rest in re.findall(r"python -m pyft\.(\w+)([^\n`|]*)", text):
        name = f"pyft.{command}" + (".__main__" if (ROOT / "pyft" / command).is_dir() else "")
        assert importlib.util.find_spec(name) is not None, command
        source = read(ROOT / (name.replace(".", "/") + ".py"))
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest):
            assert f'"{option}"' in source, f"python -m pyft.{command} {option}"


def test_the_bench_readme_names_what_there_is() -> None:
    text = read(ROOT / "bench/README.md")
    known = read(ROOT / "bench/run.py")
    assert all(f'"{option}"' in known for option in re.findall(r"(?<!\S)`?(--[a-z-]+)", text))
    files = re.findall(r"(?m)^\| `([\w.]+)` \|", text)
    assert len(files) >= 8 and all((ROOT / "bench" / name).exists() for name in files)
    listed = {path.name for path in (ROOT / "bench").iterdir() if path.is_file()} - {"README.md"}
    assert listed == set(files)


def test_the_tree_is_that_of_the_folders() -> None:
    """Every folder and every top-level module of pyft is in the tree, and all that it names exists."""
    tree = read(TREE).partition("## The tree")[2]
    listed = set(re.findall(r"`((?:pyft|csrc|bench|tests|docs)/[\w./]*)`", tree))
    folders = {
        f"{path.relative_to(ROOT)}/"
        for path in (ROOT / "pyft").rglob("*/")
        if (path / "__init__.py").exists() and path.relative_to(ROOT) != Path("pyft/data")
    }
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("pyft", "pyft/data")
        for path in (ROOT / folder).glob("*.py")
        if not path.name.startswith("__")
    }
    assert sorted((folders | modules) - listed) == []
    assert [path for path in listed if not (ROOT / path).exists()] == []
    tested = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert {name.split("/")[1] for name in folders} - {"recipes"} <= tested


def test_the_lives_are_five_steps_each() -> None:
    lives = read(TREE).split("## The life of a ")[1:]
    assert [life.split("\n")[0] for life in lives] == ["row", "weight", "step"]
    for life in lives:
        steps = re.findall(r"(?m)^\d\. .*(?:\n   .*)*", life.partition("## The tree")[0])
        assert len(steps) == 5 and all("`pyft/" in step for step in steps)


def test_generate_says_what_is_stale(
    generate: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0 and capsys.readouterr().out == ""
    monkeypatch.setitem(generate.BLOCKS, "recipes", lambda: "nothing")
    assert generate.main() == 1 and capsys.readouterr().out == "recipe.md: stale\n"


@pytest.fixture(scope="module")
def shown() -> tuple[str, list[int], list[int]]:
    """What the README's command prints of its row, and its ids and labels."""
    command = [sys.executable, "-m", "pyft.data", "quickstart", "--stage", "sft", "--num-samples", "1"]
    text, lines = (
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for more in ([], ["--json"])
    )
    sample = json.loads(lines.split("\n")[0])
    return text, sample["input_ids"], sample["labels"]


@pytest.mark.parametrize("name", READMES)
def test_the_example_is_what_the_command_prints(name: str, shown: tuple[str, list[int], list[int]]) -> None:
    text, input_ids, labels = shown
    readme = read(ROOT / name)
    printed = re.search(r"```\n(\d+ tokens.*?)```", readme, re.DOTALL)
    assert printed is not None and printed[1] in text
    for key, numbers in (("input_ids", input_ids), ("labels", labels)):
        written = re.search(rf'"{key}": \[(.*?)\]', readme)
        assert written is not None
        first, last = (
            [int(number) for number in part.split(",") if number.strip()] for part in written[1].split("...")
        )
        assert numbers[: len(first)] == first and numbers[-len(last) :] == last
    (row,) = re.findall(r"```json\n(.*?)\n```", readme, re.DOTALL)
    assert row in read(ROOT / "pyft/recipes/data/quickstart/chat.jsonl").split("\n")
