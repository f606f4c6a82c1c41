"""Overrides of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.learning_rate=1e-5", "train", "learning_rate", 1e-5),
        ("train.gradient_checkpointing=false", "train", "gradient_checkpointing", False),
        ("train.max_grad_norm=null", "train", "max_grad_norm", None),
        ("train.learning_rate=null", "train", "learning_rate", 2e-4),
        ("train.evaluation_inputs=[a, 世界]", "train", "evaluation_inputs", ["a", "世界"]),
        ("data.system=You are kind.", "data", "system", "You are kind."),
        ("data.system='a: b = c'", "data", "system", "a: b = c"),
        ('data.system=""', "data", "system", ""),
        ("train.seed = 5", "train", "seed", 5),
        ("model.template=a=b", "model", "template", "a=b"),
    ],
)
def test_values_are_yaml(
    load: Any, smallest: str, override: str, section: str, key: str, value: object
) -> None:
    assert getattr(getattr(load(smallest, override).stages[0], section), key) == value


def test_the_last_of_two_wins(load: Any, smallest: str) -> None:
    assert load(smallest, "train.seed=1", "train.seed=2").stages[0].train.seed == 2


def test_sections_appear_and_go(load: Any, smallest: str) -> None:
    made = load(smallest, "adapter.r=8").stages[0].adapter
    assert made is not None and made.r == 8 and made.lora_alpha == 16.0
    assert load(smallest + "adapter: {r: 8}\n", "adapter=null").stages[0].adapter is None


def test_list_entries(load: Any, smallest: str) -> None:
    recipe = load(
        smallest, "data.train[1].path=b", "data.train[1].format=text", "data.train[0].format=alpaca"
    )
    sources = recipe.stages[0].data.train
    assert [(Path(source.path).name, source.format) for source in sources] == [
        ("rows.jsonl", "alpaca"),
        ("b", "text"),
    ]


def test_a_list_can_begin_on_the_command_line(load: Any) -> None:
    recipe = load("model: {name_or_path: ./m}\n", "data.train[0].path=a")
    assert Path(recipe.stages[0].data.train[0].path).name == "a"


def test_the_name_of_the_recipe(load: Any, smallest: str, tmp_path: Path) -> None:
    recipe = load(smallest, "name=mine")
    assert (recipe.name, recipe.output_dir) == ("mine", str(tmp_path / "runs/mine"))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("foo", ["'foo' is not an override", "key=value"]),
        ("=3", ["is not the name of a key"]),
        ("a b=3", ["'a b' is not the name of a key"]),
        ("train..seed=1", ["'train..seed' is not the name of a key"]),
        ("x" * 5000 + "=1", ["is not the name of a key"]),
        ("train.seed=", ["train.seed= has no value", "train.seed=null"]),
        ("train.seed=[1", ["close the quote or bracket", "train.seed:1:3"]),
        ("data.train[0].path=*.jsonl", ["put it in quotes", "data.train[0].path"]),
        ("train.output_dir=run #3", ["comment", "put it in quotes"]),
        ("train.seed=!!python/object:a.b {}", ["!!python/object:a.b"]),
        ("data.train[2].path=b", ["data.train ends before [2]", "the next free one is data.train[1]"]),
        ("data.train[999999].path=b", ["the next free one is data.train[1]"]),
        ("data.train.path=b", ["data.train is a list", "write data.train[0].path"]),
        ("data[0]=b", ["data is not a list", "without [0]"]),
        ("model.name_or_path.x=1", ["model.name_or_path is not a mapping"]),
        ("data.system=You are: nice", ["data.system is a mapping", "quotes"]),
        ("data.system=5", ["data.system is 5", "quotes"]),
        ("learning_rate=1e-4", ["unknown key learning_rate", "did you mean train.learning_rate?"]),
        ("lr=1", ["unknown key lr", "write train.learning_rate"]),
        ("trian.seed=1", ["unknown key trian", "did you mean train?"]),
        ("data.train[0].formt=x", ["unknown key data.train[0].formt", "did you mean data.train[0].format?"]),
    ],
)
def test_refusals(mistakes: Any, smallest: str, override: str, parts: list[str]) -> None:
    (message,) = mistakes(smallest, override)
    assert "command line" in message
    assert len(message) < 400
    assert all(part in message for part in parts)
