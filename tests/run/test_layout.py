"""The names of a run's files: said once, and all that a run leaves is among them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from toy import toy_run

import pyft
from pyft.config.load import load_recipe
from pyft.errors import ConfigError
from pyft.run import layout

PACKAGE = Path(pyft.__file__).parent
NAMES = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)} - {
    layout.TOKENIZER,
    layout.MERGED,
    layout.RESULT,
}  # words that mean other things too


def strings(path: Path) -> set[str]:
    """Every text in a file's code that is not a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


def test_no_other_file_spells_a_name():
    assert "trainer_log.jsonl" in NAMES and len(NAMES) > 12
    spelt = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if path != Path(layout.__file__)
        for text in strings(path)
        if text in NAMES
    }
    assert not spelt


def test_a_run_leaves_nothing_that_the_layout_does_not_name(tmp_path):
    toy_run(tmp_path, settings={"max_steps": 2, "save_steps": 1})
    left = {path.name for path in tmp_path.iterdir()}
    checkpoints = {name for name in left if layout.checkpoint_step(Path(name)) is not None}
    assert len(checkpoints) == 2 and left - checkpoints - NAMES <= {"weights.safetensors"}
    for _, checkpoint in layout.list_checkpoints(tmp_path):
        assert {path.name for path in checkpoint.iterdir()} - NAMES <= {"weights.safetensors"}


@pytest.mark.parametrize("step", [0, 7, 12345])
def test_checkpoints_are_known_by_their_names(tmp_path, step):
    path = tmp_path / layout.checkpoint_name(step)
    assert layout.checkpoint_step(path) == step
    for name in (f"x{path.name}", f"{path.name}x", layout.superseded_name(path), layout.trash_name(path)):
        assert layout.checkpoint_step(tmp_path / name) is None
    assert layout.is_leftover(Path(layout.trash_name(path))) and not layout.is_leftover(path)


def test_a_stage_may_not_be_called_as_a_checkpoint_is(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    name = layout.checkpoint_name(3)
    recipe.write_text(
        "model: {name_or_path: m}\ndata: {train: [{path: d.jsonl}]}\ntrain: {output_dir: o, max_steps: 1}\n"
        f"stages: [{{mode: sft, name: {name}}}]\n"
    )
    with pytest.raises(ConfigError, match=name):
        load_recipe(str(recipe), [])
