"""The shipped recipes, and `python -m pyft.recipes`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyft.command import run_command
from pyft.config.load import load_recipe
from pyft.config.mistakes import foreign_names
from pyft.config.shipped import shipped_recipes
from pyft.recipes.__main__ import command_line, main

FOR_REAL_MODELS = ("pretrain_full", "pretrain_qlora", "sft_full", "sft_lora", "sft_qlora")


def run(*arguments: str) -> int:
    return run_command(main, command_line(), arguments)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_right_and_explained(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.name == name and recipe.source == shipped_recipes()[name]
    header = [line for line in recipe.source.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python -m pyft.train {name}" in text
    assert "emory" in text and "ou will see" in text


@pytest.mark.parametrize("name", FOR_REAL_MODELS)
def test_recipes_for_real_models(name: str) -> None:
    """The mode and kind of training that the name says, and the defaults of XTuner's QLoRA recipes."""
    mode, kind = name.split("_")
    (stage,) = load_recipe(name, ["model.name_or_path=./my model", "data.train[0].path=mine.jsonl"]).stages
    assert stage.mode == mode
    assert (stage.adapter is None) == (kind == "full")
    assert (stage.model.quantization == "nf4") == (kind == "qlora")
    assert stage.model.name_or_path == str(Path("my model").absolute())
    assert stage.data.train[0].path == str(Path("mine.jsonl").absolute())
    assert stage.data.val_size == 0.05
    if stage.adapter is not None:
        adapter = stage.adapter
        assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (64, 16.0, 0.1)
        assert adapter.target_modules == "all-linear"
        assert stage.train.learning_rate == 2e-4
    train = stage.train
    assert (train.lr_scheduler_type, train.warmup_steps, train.max_grad_norm) == ("cosine", 0.03, 1.0)
    assert stage.model.dtype == "bfloat16"
    assert train.output_dir == str(Path("runs", name).absolute())
    assert train.evaluation_inputs


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copy_writes_into_a_folder_of_its_own_name(name: str, tmp_path: Path) -> None:
    """The README trains `my.yaml` and then talks to `runs/my`."""
    copy = tmp_path / "my.yaml"
    copy.write_bytes(shipped_recipes()[name].read_bytes())
    assert load_recipe(str(copy), []).output_dir == str(Path("runs/my").absolute())
    assert load_recipe(name, []).output_dir == str(Path("runs", name).absolute())


@pytest.mark.parametrize("name", FOR_REAL_MODELS)
def test_every_key_has_a_comment(name: str) -> None:
    for line in shipped_recipes()[name].read_text(encoding="utf-8").splitlines():
        is_value = re.match(r"\s+(- )?\w+: \S", line)
        assert is_value is None or re.search(r"\s{2,}# \S", line), line
        assert not any(re.match(rf"\s*{word}:", line) for word in foreign_names().keys)


@pytest.mark.parametrize("name", FOR_REAL_MODELS)
def test_the_keys_in_comments_can_be_taken_in(name: str, tmp_path: Path) -> None:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    taken, number = re.subn(r"(?m)^(\s+)# (?=\w+: )", r"\1", text)
    assert number >= 4
    copy = tmp_path / "copy.yaml"
    copy.write_text(taken, encoding="utf-8")
    (stage,) = load_recipe(str(copy), ["train.max_steps=3"]).stages
    assert stage.data.train[0].weight == 2 and stage.data.train[0].columns
    assert stage.data.streaming == (stage.mode == "pretrain")


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_list_names_each_with_its_first_line(capsys: Any, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, path in shipped_recipes().items():
        (line,) = [line for line in lines if line.split("  ")[0] == name]
        assert path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") in line


def test_copy_to_a_file_and_into_a_folder(tmp_path: Path, capsys: Any) -> None:
    source = shipped_recipes()["sft_qlora"].read_bytes()
    (tmp_path / "文件 夹").mkdir()
    assert run("copy", "sft_qlora", str(tmp_path / "mine.yaml")) == 0
    assert run("copy", "sft_qlora", str(tmp_path / "文件 夹")) == 0
    assert (tmp_path / "mine.yaml").read_bytes() == source
    assert (tmp_path / "文件 夹" / "sft_qlora.yaml").read_bytes() == source
    assert "python -m pyft.train" in capsys.readouterr().out
    assert load_recipe(str(tmp_path / "mine.yaml"), []).name == "mine"


def test_copy_never_overwrites(tmp_path: Path, capsys: Any) -> None:
    there = tmp_path / "mine.yaml"
    there.write_text("mine")
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "nowhere")
    (tmp_path / "sft_lora.yaml").write_text("mine too")
    for dest in (there, link, tmp_path):
        assert run("copy", "sft_lora", str(dest)) == 2
        assert capsys.readouterr().err.startswith("error: it exists already")
    assert there.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "mine.yaml", "sft_lora.yaml"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The disk is full after 100 bytes: the operating system refuses the rest of the file."""
    script = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        f"sys.argv = ['recipes', 'copy', 'sft_lora', {str(tmp_path / 'mine.yaml')!r}]; "
        "runpy.run_module('pyft.recipes', run_name='__main__')"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 5, result.stderr
    assert result.stderr.startswith("error: File too large") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("copy",), "copy NAME DEST"),
        (("copy", "sft_lora"), "copy NAME DEST"),
        (("list", "x"), "copy NAME DEST"),
        (("copy", "sft_lor", "x.yaml"), "did you mean sft_lora?"),
        (("copy", "sft_lora", "no/such/folder/x.yaml"), "no such folder"),
        (("show",), "invalid choice"),
    ],
)
def test_wrong_command_lines(capsys: Any, arguments: tuple[str, ...], part: str) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and part in err
