"""One recipe without stages: defaults, types, paths, finding it by name, and its resolved form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import pyft
from pyft.config.load import load_recipe
from pyft.config.schema import TokenizerConfig
from pyft.config.shipped import find_recipe, shipped_recipes
from pyft.config.yaml_text import dump_yaml
from pyft.errors import ConfigError

SCRATCH = """
model:
  from_scratch: true
  config: {model_type: qwen3, hidden_size: 64, rope_scaling: null}
  tokenizer: {vocab_size: 512}
data: {train: [{path: rows.jsonl}]}
"""


def test_defaults_are_those_of_the_documentation(load: Any, smallest: str) -> None:
    recipe = load(smallest + "adapter: {}\n")
    (stage,) = recipe.stages
    assert (recipe.name, recipe.staged, stage.name, stage.mode) == ("recipe", False, "sft", "sft")
    assert stage.adapter is not None
    assert stage.adapter.model_dump() == {
        "r": 64,
        "lora_alpha": 16.0,
        "lora_dropout": 0.1,
        "target_modules": "all-linear",
    }
    assert stage.model.model_dump() == {
        "name_or_path": os.path.abspath("base"),
        "template": None,
        "quantization": None,
        "double_quant": True,
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "config": None,
        "from_scratch": False,
        "tokenizer": None,
    }
    assert stage.data.model_dump() == {
        "train": [
            {
                "path": os.path.abspath("rows.jsonl"),
                "format": "auto",
                "map": None,
                "columns": {},
                "system": None,
                "max_samples": None,
                "weight": 1.0,
                "name": None,
                "split": "train",
            }
        ],
        "validation": [],
        "val_size": 0.05,
        "max_length": 2048,
        "packing": True,
        "system": None,
        "on_bad_record": "error",
        "overlong": None,
        "train_on": "assistant",
        "train_on_eot": True,
        "streaming": False,
        "num_workers": None,
        "cache_dir": None,
    }
    assert stage.train.model_dump() == {
        "output_dir": os.path.abspath("runs/recipe"),
        "num_train_epochs": 3.0,
        "max_steps": None,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "eval_steps": 50,
        "save_steps": 50,
        "save_total_limit": 2,
        "evaluation_inputs": [],
        "evaluation_system": None,
        "evaluation_max_new_tokens": 64,
        "resume_from_checkpoint": "auto",
        "seed": 42,
        "report_to": [],
        "device": "auto",
    }
    assert recipe.output_dir == stage.train.output_dir


def test_absent_adapter_means_full_fine_tuning(load: Any, smallest: str) -> None:
    assert load(smallest).stages[0].adapter is None
    assert load(smallest + "adapter:\n").stages[0].adapter is None


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("train: {learning_rate: 1e-5}", "learning_rate", 1e-5),
        ("train: {learning_rate: 0}", "learning_rate", 0.0),
        ("train: {num_train_epochs: 2}", "num_train_epochs", 2.0),
        ("train: {max_steps: 7}", "max_steps", 7),
        ("train: {max_grad_norm: null}", "max_grad_norm", None),
        ("train: {eval_steps: null}", "eval_steps", None),
        ("train: {warmup_steps: 10}", "warmup_steps", 10.0),
        ("train: {warmup_steps: 0.5}", "warmup_steps", 0.5),
        ("train: {save_total_limit: 1}", "save_total_limit", 1),
        ("train: {report_to: [tensorboard, wandb]}", "report_to", ["tensorboard", "wandb"]),
        ("train: {evaluation_inputs: [世界最高峰是什么峰？]}", "evaluation_inputs", ["世界最高峰是什么峰？"]),
        ("train: {resume_from_checkpoint: null}", "resume_from_checkpoint", None),
        ("train:", "seed", 42),
    ],
)
def test_legal_values(load: Any, smallest: str, line: str, key: str, value: object) -> None:
    read = getattr(load(smallest + line).stages[0].train, key)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("given", "value"), [("0", 0), ("0.1", 0.1), ("1", 1), ("200", 200), ("0.0", 0.0)])
def test_val_size(load: Any, given: str, value: float) -> None:
    recipe = load(f"model: {{name_or_path: ./m}}\ndata: {{train: [{{path: a}}], val_size: {given}}}\n")
    assert recipe.stages[0].data.val_size == value


def test_validation_files_switch_the_split_off(load: Any) -> None:
    recipe = load("model: {name_or_path: ./m}\ndata: {train: [{path: a}], validation: [{path: b}]}\n")
    assert recipe.stages[0].data.val_size == 0


def test_max_length_null_parses_without_packing(load: Any) -> None:
    recipe = load(
        "model: {name_or_path: ./m}\ndata: {train: [{path: a}], max_length: null, packing: false}\n"
    )
    assert recipe.stages[0].data.max_length is None


def test_from_scratch(load: Any) -> None:
    model = load(SCRATCH).stages[0].model
    assert model.from_scratch and model.name_or_path is None
    assert model.config == {"model_type": "qwen3", "hidden_size": 64, "rope_scaling": None}
    assert model.tokenizer == TokenizerConfig(type="bpe", vocab_size=512)


def test_paths_are_relative_to_the_current_folder(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = SCRATCH.replace(
        "config: {model_type: qwen3, hidden_size: 64, rope_scaling: null}", "config: shapes/a"
    )
    text = text.replace("tokenizer: {vocab_size: 512}", "tokenizer: ../tok.model")
    overrides = ["data.train[0].path=~/数据 一/*.jsonl", "train.resume_from_checkpoint=runs/a/checkpoint-5"]
    stage = load(text, *overrides).stages[0]
    assert stage.model.config == str(tmp_path / "shapes/a")
    assert stage.model.tokenizer == str(tmp_path.parent / "tok.model")
    assert stage.data.train[0].path == str(tmp_path / "home/数据 一/*.jsonl")
    assert stage.train.resume_from_checkpoint == str(tmp_path / "runs/a/checkpoint-5")


def test_a_model_can_be_a_folder_or_a_name_on_the_hub(load: Any, smallest: str, tmp_path: Path) -> None:
    def name(given: str) -> str | None:
        return load(smallest, f"model.name_or_path={given}").stages[0].model.name_or_path

    (tmp_path / "here").mkdir()
    assert name("here") == str(tmp_path / "here")
    assert name("./there") == str(tmp_path / "there")
    assert name("a/b/c") == str(tmp_path / "a/b/c")
    assert name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


def test_shipped_data_is_in_the_package(load: Any, smallest: str) -> None:
    recipe = load(smallest, "data.train[0].path=pyft://folder/a.jsonl")
    package = Path(pyft.__file__).resolve().parent
    assert recipe.stages[0].data.train[0].path == str(package / "recipes/data/folder/a.jsonl")


@pytest.mark.parametrize(
    "path", ["pyft://", "pyft://../schema.py", "pyft://a/../../b", "pyft:///etc/passwd", "pyft://a//b"]
)
def test_shipped_data_stays_in_its_folder(mistakes: Any, smallest: str, path: str) -> None:
    (message,) = mistakes(smallest, f"data.train[0].path={path}")
    assert message.startswith("data.train[0].path is") and "pyft://folder/file.jsonl" in message


@pytest.mark.parametrize(
    "text",
    [
        SCRATCH,
        SCRATCH.replace("tokenizer: {vocab_size: 512}", "tokenizer: ./t").replace(
            "config: {", "config: {note: '1e-5', "
        ),
        "name: my run\nmode: pretrain\nmodel: {name_or_path: Qwen/Q, quantization: nf4}\n"
        "adapter: {target_modules: [q, v]}\n"
        "data: {train: [{path: a}, {path: 数据, format: text}], validation: [{path: b}], system: '007'}\n"
        "train: {learning_rate: 1e-5, eval_steps: null, warmup_steps: 3, max_grad_norm: null,\n"
        "  report_to: [wandb]}\n",
    ],
)
def test_resolved_is_plain_and_loads_as_an_equal_recipe(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    recipe = load(text, "train.seed=7", "train.evaluation_inputs=[世界]")
    written = dump_yaml(recipe.resolved)
    assert yaml.safe_load(written) == recipe.resolved
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.yaml").write_text(written, encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    again = load_recipe("config.yaml", [])
    assert again == recipe
    assert again.resolved == recipe.resolved
    assert again.source != recipe.source
    assert again.stages[0].train.seed == 7


def test_resolved_holds_no_default_back(load: Any, smallest: str) -> None:
    resolved = load(smallest).resolved
    assert resolved["train"]["adam_beta2"] == 0.999 and resolved["adapter"] is None


def test_equality_sees_every_value(load: Any, smallest: str) -> None:
    assert load(smallest) == load(smallest)
    assert load(smallest) != load(smallest, "train.adam_epsilon=1e-7")


def test_recipes_are_read_only(load: Any, smallest: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(smallest).stages[0].train.seed = 3


def test_finding_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("sft_qlora") == shipped_recipes()["sft_qlora"]
    Path("sft_qlora.yaml").write_text("mode: sft\n")
    assert find_recipe("sft_qlora.yaml") == Path("sft_qlora.yaml")
    with pytest.raises(ConfigError, match="did you mean sft_qlora") as caught:
        find_recipe("sft_qlor")
    assert all(name in caught.value.messages[0] for name in shipped_recipes())


@pytest.mark.parametrize("name", ["", "no.yaml", "a/b/c", "x\0y"])
def test_absent_recipes(name: str) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(name, [])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("null\n", "is empty"),
        ("{}\n", "is empty"),
        ("[1, 2]\n", "is a list"),
        ("hello\n", "is the text 'hello'"),
    ],
)
def test_files_that_hold_no_recipe(mistakes: Any, text: str, part: str) -> None:
    (message,) = mistakes(text)
    assert part in message and "recipe.yaml" in message


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(str(tmp_path), [])


SOURCES = """
model: {name_or_path: ./m, template: forms/my.jinja}
data:
  train:
    - {path: 'hf://owner/a-name', name: main, split: 'train[:10%]', weight: 0.5, max_samples: 7}
    - {path: rows, map: medical, columns: {instruction: 'the question', output: 答案}, system: ''}
  streaming: true
  overlong: truncate
  train_on: last
  train_on_eot: false
  on_bad_record: skip
  num_workers: 0
  cache_dir: ~/cache
train: {max_steps: 3}
"""


def test_sources_of_every_kind(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = load(SOURCES)
    (stage,) = recipe.stages
    first, second = stage.data.train
    assert (first.path, first.name, first.split) == ("hf://owner/a-name", "main", "train[:10%]")
    assert (first.weight, first.max_samples) == (0.5, 7)
    assert second.path == str(tmp_path / "rows") and second.map == "medical"
    assert second.columns == {"instruction": "the question", "output": "答案"} and second.system == ""
    assert stage.model.template == str(tmp_path / "forms/my.jinja")
    assert stage.data.cache_dir == str(tmp_path / "home/cache")
    # What was resolved in one folder means the same in another.
    Path("config.yaml").write_text(dump_yaml(recipe.resolved), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe("../config.yaml", []) == recipe


def test_a_column_can_be_overridden(load: Any, smallest: str) -> None:
    recipe = load(smallest, "data.train[0].columns.output=answer", "data.train[0].columns.input=with blank")
    assert recipe.stages[0].data.train[0].columns == {"output": "answer", "input": "with blank"}


def test_texts_may_be_split(load: Any, smallest: str) -> None:
    assert load(smallest, "mode=pretrain", "data.overlong=split").stages[0].data.overlong == "split"


def test_defaults_may_be_spelled_out_in_every_mode(load: Any, smallest: str) -> None:
    """A run's config.yaml has them all, whatever its mode."""
    for mode in ("pretrain", "sft"):
        recipe = load(smallest + f"mode: {mode}\n")
        Path("config.yaml").write_text(dump_yaml(recipe.resolved), encoding="utf-8")
        assert load_recipe("config.yaml", []).stages == recipe.stages
