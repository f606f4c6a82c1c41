"""`stages:`: merging over the top level, names, folders, what a later stage starts from, resolving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pyft.config.load import deep_merge, load_recipe
from pyft.config.yaml_text import dump_yaml

TWO = """\
model: {template: qwen_chat, dtype: float32}
data: {max_length: 64, train: [{path: a.jsonl}, {path: b.jsonl}]}
train: {output_dir: out, learning_rate: 1e-3, max_steps: 30, save_steps: null}
stages:
  - name: pretrain
    mode: pretrain
    model: {from_scratch: true, config: {model_type: qwen3, rope_scaling: null}, tokenizer: {vocab_size: 800}}
    data: {train: [{path: facts.jsonl, format: text}]}
    train: {num_train_epochs: 5, eval_steps: null}
  - mode: sft
    model: {quantization: nf4}
    adapter: {r: 8}
    train: {learning_rate: null, max_steps: null, save_steps: 10}
"""


def test_entries_merge_over_the_top_level(load: Any, tmp_path: Path) -> None:
    recipe = load(TWO)
    first, second = recipe.stages
    assert recipe.staged and recipe.output_dir == str(tmp_path / "out")
    assert [stage.name for stage in recipe.stages] == ["pretrain", "sft"]
    assert [stage.train.output_dir for stage in recipe.stages] == [
        str(tmp_path / "out/pretrain"),
        str(tmp_path / "out/sft"),
    ]
    assert (first.model.template, first.model.dtype, first.model.from_scratch) == (
        "qwen_chat",
        "float32",
        True,
    )
    assert (second.model.template, second.model.quantization) == ("qwen_chat", "nf4")
    # Mappings merge key by key.
    assert first.data.max_length == second.data.max_length == 64
    assert (first.train.num_train_epochs, first.train.learning_rate, first.train.max_steps) == (5.0, 1e-3, 30)
    # Lists replace.
    assert [Path(source.path).name for source in first.data.train] == ["facts.jsonl"]
    assert [Path(source.path).name for source in second.data.train] == ["a.jsonl", "b.jsonl"]
    # Null removes: a value of its own where there is one, else back to the default.
    assert (second.train.max_steps, second.train.learning_rate) == (None, 2e-4)
    assert (first.train.eval_steps, first.train.save_steps, second.train.save_steps) == (None, None, 10)
    # What one stage has does not leak into the other.
    assert first.adapter is None and second.adapter is not None and second.adapter.r == 8


def test_null_removes_a_whole_section(load: Any, smallest: str) -> None:
    recipe = load(smallest + "adapter: {r: 8}\nstages: [{name: a}, {name: b, adapter: null}]\n")
    assert [stage.adapter is None for stage in recipe.stages] == [False, True]


def test_a_later_stage_starts_from_the_one_before(load: Any, smallest: str) -> None:
    recipe = load(smallest + "stages: [{name: a}, {name: b}, {name: c}]\n")
    assert [stage.model.name_or_path is None for stage in recipe.stages] == [False, True, True]


def test_random_weights_at_the_top_level_are_the_first_stages(load: Any) -> None:
    recipe = load(
        "model: {from_scratch: true, config: ./c, tokenizer: ./t}\ndata: {train: [{path: a}]}\n"
        "stages: [{mode: pretrain}, {mode: sft, adapter: {}}]\n"
    )
    first, second = (stage.model for stage in recipe.stages)
    assert first.from_scratch and not second.from_scratch
    assert second.config is None and second.tokenizer is None


@pytest.mark.parametrize("key", ["name_or_path: ./x", "from_scratch: true", "config: ./c", "tokenizer: ./t"])
def test_a_later_stage_has_no_start_of_its_own(mistakes: Any, smallest: str, key: str) -> None:
    (message,) = mistakes(smallest + f"stages: [{{name: a}}, {{name: b, model: {{{key}}}}}]\n")
    assert message.startswith(f"stages[1].model.{key.partition(':')[0]} is given") and "stages[0]" in message


def test_overrides_win_over_both(load: Any) -> None:
    recipe = load(TWO, "train.learning_rate=5e-5", "train.max_steps=3", "data.train[0].path=c.jsonl")
    assert [stage.train.learning_rate for stage in recipe.stages] == [5e-5, 5e-5]
    assert [stage.train.max_steps for stage in recipe.stages] == [3, 3]
    assert [Path(stage.data.train[0].path).name for stage in recipe.stages] == ["c.jsonl", "c.jsonl"]


def test_a_section_can_be_overridden_as_a_whole(load: Any, smallest: str, tmp_path: Path) -> None:
    first, second = load(
        smallest + "stages: [{name: a}, {name: b}]\n", "model={name_or_path: ./other}"
    ).stages
    assert (first.model.name_or_path, second.model.name_or_path) == (str(tmp_path / "other"), None)


def test_an_override_can_be_for_one_stage(load: Any) -> None:
    recipe = load(TWO, "stages[1].train.seed=7", "stages[1].train.max_steps=4", "stages[0].name=read")
    assert [stage.train.seed for stage in recipe.stages] == [42, 7]
    assert [stage.train.max_steps for stage in recipe.stages] == [30, 4]
    assert [stage.name for stage in recipe.stages] == ["read", "sft"]


def test_adapter_keys_are_for_the_stages_that_have_one(load: Any, smallest: str) -> None:
    first, second = load(TWO, "adapter.r=4").stages
    assert first.adapter is None
    assert second.adapter is not None and second.adapter.r == 4
    made = load(smallest + "stages: [{name: a}, {name: b}]\n", "adapter.r=4")
    assert [stage.adapter.r for stage in made.stages] == [4, 4]


def test_output_dir_by_default_and_by_override(load: Any, smallest: str, tmp_path: Path) -> None:
    text = smallest + "stages: [{name: a}]\n"
    assert load(text).stages[0].train.output_dir == str(tmp_path / "runs/recipe/a")
    assert load(text, "train.output_dir=x y").stages[0].train.output_dir == str(tmp_path / "x y/a")


@pytest.mark.parametrize(
    ("stages", "start", "fix"),
    [
        ("[]", "stages is an empty list", "at least one"),
        ("hello", "stages is the text", "at least one"),
        ("", "stages is empty", "at least one"),
        ("{a: 1}", "stages is a mapping", "at least one"),
        ("[3]", "stages[0] is 3", "mapping"),
        ("[{name: a}, null]", "stages[1] is empty", "mapping"),
        ("[{name: a}, {name: a}]", "stages[1].name is 'a'", "of its own"),
        ("[{name: Say}, {name: say}]", "stages[1].name is 'say'", "of its own"),
        ("[{mode: sft}, {mode: sft}]", "stages[1].name is 'sft'", "of its own"),
        ("[{name: a/b}]", "stages[0].name is the text 'a/b'", "letters"),
        ("[{name: ..}]", "stages[0].name is the text '..'", "letters"),
        ("[{name: .hidden}]", "stages[0].name is", "letters"),
        ("[{name: ''}]", "stages[0].name is", "letters"),
        ("[{name: 3}]", "stages[0].name is 3", "letters"),
        ('[{name: "a\\n"}]', "stages[0].name is", "letters"),
        ("[{name: checkpoint-5}]", "stages[0].name is", "checkpoint-"),
        ("[{name: a, train: {output_dir: x}}]", "stages[0].train.output_dir is given", "top level"),
        ("[{name: a, nme: x}]", "unknown key stages[0].nme", "did you mean stages[0].name?"),
        (
            "[{name: a, data: {train: [{path: a, formt: text}]}}]",
            "unknown key stages[0].data.train[0].formt",
            "did you mean stages[0].data.train[0].format?",
        ),
        ("[{name: a, stages: []}]", "unknown key stages[0].stages", ""),
    ],
)
def test_wrong_stages(mistakes: Any, smallest: str, stages: str, start: str, fix: str) -> None:
    (message,) = mistakes(smallest + f"stages: {stages}\n")
    assert message.startswith(start)
    assert "(recipe.yaml:3)" in message
    assert fix in message


def test_names_may_be_chinese(load: Any, smallest: str, tmp_path: Path) -> None:
    assert load(smallest + "stages: [{name: 预训练}]\n").stages[0].train.output_dir == str(
        tmp_path / "runs/recipe/预训练"
    )


def test_a_mistake_at_the_top_level_is_told_once(mistakes: Any, smallest: str) -> None:
    (message,) = mistakes(smallest + "train: {sed: 1}\nstages: [{name: a}, {name: b}]\n")
    assert message == "unknown key train.sed (recipe.yaml:3): did you mean train.seed?"


def test_only_the_first_stage_needs_a_model(mistakes: Any) -> None:
    (message,) = mistakes("data: {train: [{path: a}]}\nstages: [{name: a}, {name: b}]\n")
    assert message.startswith("model.name_or_path is missing")


def test_stage_overrides_need_the_stage(mistakes: Any, smallest: str) -> None:
    assert "the recipe has 0" in mistakes(smallest, "stages[0].train.seed=1")[0]
    assert "the recipe has 2" in mistakes(TWO, "stages[2].train.seed=1")[0]
    assert "command line" in mistakes(TWO, "stages.sft.train.seed=1")[0]


def test_resolved_loads_as_an_equal_recipe(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(TWO, "train.seed=9")
    written = dump_yaml(recipe.resolved)
    assert yaml.safe_load(written) == recipe.resolved
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("config.yaml").write_text(written, encoding="utf-8")
    again = load_recipe("config.yaml", [])
    assert again == recipe and again.resolved == recipe.resolved
    assert again.stages[0].model.config == {"model_type": "qwen3", "rope_scaling": None}


def test_deep_merge_shares_nothing() -> None:
    base: dict[str, Any] = {"train": {"seed": 1}, "data": {"train": [{"path": "a"}]}}
    over: dict[str, Any] = {"data": {"validation": [{"path": "b"}]}}
    merged = deep_merge(base, over)
    merged["train"]["seed"] = 2
    merged["data"]["train"].append(1)
    merged["data"]["validation"].append(1)
    assert base == {"train": {"seed": 1}, "data": {"train": [{"path": "a"}]}}
    assert over == {"data": {"validation": [{"path": "b"}]}}
