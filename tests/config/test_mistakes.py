"""Wrong recipes: each mistake on a line of its own that names the place, the line in the file, the fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pyft.config.schema import CONTRADICTION, DataConfig, DataSource, Stage

MODEL = "model: {name_or_path: ./m}\n"
DATA = "data: {train: [{path: a}]}\n"


@pytest.mark.parametrize(
    ("line", "start", "fix"),
    [
        ("train: {learning_rate: -1}", "train.learning_rate is -1", "at least 0"),
        ("train: {learning_rate: true}", "train.learning_rate is true", "a number"),
        ("train: {learning_rate: .nan}", "train.learning_rate is nan", "finite"),
        ("train: {learning_rate: -.inf}", "train.learning_rate is -inf", "finite"),
        ("train: {learning_rate: '1e-5'}", "train.learning_rate is the text '1e-5'", "a number"),
        ("train: {learning_rate: }", "train.learning_rate is empty", "remove the key to have 0.0002"),
        (f"train: {{learning_rate: {'9' * 400}}}", "train.learning_rate is a very large number", "a number"),
        ("train: {max_steps: true}", "train.max_steps is true", "a whole number, or null"),
        ("train: {max_steps: 1e3}", "train.max_steps is 1000.0", "a whole number"),
        ("train: {max_steps: 0}", "train.max_steps is 0", "at least 1, or null"),
        ("train: {num_train_epochs: 0}", "train.num_train_epochs is 0", "more than 0"),
        ("train: {warmup_steps: 1.5}", "train.warmup_steps is 1.5", "a share of all steps below 1"),
        ("train: {warmup_steps: -1}", "train.warmup_steps is -1", "at least 0"),
        ("train: {seed: -1}", "train.seed is -1", "at least 0"),
        ("train: {seed: 4294967296}", "train.seed is 4294967296", "less than 4294967296"),
        ("train: {adam_beta1: 1}", "train.adam_beta1 is 1", "less than 1"),
        ("train: {save_total_limit: 0}", "train.save_total_limit is 0", "at least 1"),
        ("train: {lr_scheduler_type: poly}", "train.lr_scheduler_type is", "cosine, linear or constant"),
        ("train: {report_to: wandb}", "train.report_to is the text 'wandb'", "as [wandb]"),
        ("train: {report_to: [mlflow]}", "train.report_to[0] is the text 'mlflow'", "tensorboard or wandb"),
        ("train: {evaluation_inputs: hi}", "train.evaluation_inputs is the text 'hi'", "as [hi]"),
        ("train: {output_dir: 3}", "train.output_dir is 3", "quotes"),
        ("train: {output_dir: ''}", "train.output_dir is the text ''", "not empty"),
        ('train: {output_dir: "a\\0b"}', "train.output_dir is", "NUL"),
        ("train: hello", "train is the text 'hello'", "output_dir, num_train_epochs"),
        ("train: [1]", "train is a list", "a mapping"),
        ("mode: dpo", "mode is the text 'dpo'", "pretrain or sft"),
        ("mode: cpt", "mode is the text 'cpt'", "did you mean pretrain?"),
        ("mode: ", "mode is empty", "pretrain or sft"),
        ("adapter: true", "adapter is true", "r, lora_alpha"),
        ("adapter: {r: 0}", "adapter.r is 0", "at least 1"),
        ("adapter: {r: 8.0}", "adapter.r is 8.0", "a whole number"),
        ("adapter: {lora_dropout: 1}", "adapter.lora_dropout is 1", "less than 1"),
        ("adapter: {target_modules: q_proj}", "adapter.target_modules is the text 'q_proj'", "all-linear"),
        ("adapter: {target_modules: []}", "adapter.target_modules is an empty list", "all-linear"),
        ("adapter: {target_modules: [a, a]}", "adapter.target_modules is a list", "different"),
        ("name: a/b", "name is the text 'a/b'", "folder"),
    ],
)
def test_values(mistakes: Any, line: str, start: str, fix: str) -> None:
    (message,) = mistakes(MODEL + DATA + line)
    assert message.startswith(start)
    assert "(recipe.yaml:3)" in message
    assert fix in message.partition(")")[2]


@pytest.mark.parametrize(
    ("line", "start", "fix"),
    [
        ("", "data.train is missing", "[{path: rows.jsonl}]"),
        ("data:", "data.train is missing", "[{path: rows.jsonl}]"),
        ("data: {train: []}", "data.train is an empty list", "at least 1"),
        ("data: {train: x.jsonl}", "data.train is the text 'x.jsonl'", "[{path: x.jsonl}]"),
        ("data: {train: [x.jsonl]}", "data.train[0] is the text 'x.jsonl'", "{path: rows.jsonl}"),
        ("data: {train: [{format: text}]}", "data.train[0].path is missing", "path: rows.jsonl"),
        ("data: {train: [{path: a}, {path: 3}]}", "data.train[1].path is 3", "quotes"),
        (
            "data: {train: [{path: a, format: csv}]}",
            "data.train[0].format is the text 'csv'",
            "the kind of file is known from its name, this says how its rows are written: say auto, text",
        ),
        ("data: {train: [{path: a, format: openai}]}", "data.train[0].format is", "did you mean messages?"),
        ("data: {train: [{path: a, format: shargpt}]}", "data.train[0].format is", "did you mean sharegpt?"),
        ("data: {train: [{path: a, format: 7}]}", "data.train[0].format is 7", ": say auto"),
        ("data: {train: [{path: 'hf://squad'}]}", "data.train[0].path is", "as hf://owner/name"),
        ("data: {train: [{path: 'hf://a/b/c'}]}", "data.train[0].path is", "as hf://owner/name"),
        ("data: {train: [{path: 'https://x.org/a.jsonl'}]}", "data.train[0].path is", "download it"),
        ("data: {train: [{path: a, columns: [x]}]}", "data.train[0].columns is a list", "{instruction: "),
        ("data: {train: [{path: a, columns: {x: ''}}]}", "data.train[0].columns is a mapping", "not empty"),
        ("data: {train: [{path: a, columns: {'': x}}]}", "data.train[0].columns is a mapping", "not empty"),
        ("data: {train: [{path: a, columns: {x: 3}}]}", "data.train[0].columns.x is 3", "quotes"),
        ("data: {train: [{path: a, columns: {x: }}]}", "data.train[0].columns.x is empty", "quotes"),
        ("data: {train: [{path: a, columns: {x: q, y: q}}]}", "data.train[0].columns is", "once"),
        ("data: {train: [{path: a, map: ''}]}", "data.train[0].map is the text ''", "not empty"),
        ("data: {train: [{path: a, weight: 0}]}", "data.train[0].weight is 0", "more than 0"),
        ("data: {train: [{path: a, weight: 1e9}]}", "data.train[0].weight is", "at most 1000"),
        ("data: {train: [{path: a, max_samples: 0}]}", "data.train[0].max_samples is 0", "at least 1"),
        ("data: {train: [{path: a, split: }]}", "data.train[0].split is empty", "to have train"),
        (
            "data: {train: [{path: a}], overlong: cut}",
            "data.overlong is",
            "truncate, split or error, or null",
        ),
        ("data: {train: [{path: a}], train_on: user}", "data.train_on is", "assistant, last or all"),
        ("data: {train: [{path: a}], on_bad_record: drop}", "data.on_bad_record is", "error or skip"),
        ("data: {train: [{path: a}], num_workers: -1}", "data.num_workers is -1", "at least 0, or null"),
        ("data: {train: [{path: a}], cache_dir: ''}", "data.cache_dir is the text ''", "not empty"),
        ("data: {train: [{path: a}], max_length: 1}", "data.max_length is 1", "at least 2"),
        ("data: {train: [{path: a}], val_size: 1.5}", "data.val_size is 1.5", "whole number"),
        ("data: {train: [{path: a}], val_size: 1.0}", "data.val_size is 1.0", "whole number"),
        ("data: {train: [{path: a}], val_size: -1}", "data.val_size is -1", "whole number"),
        ("data: {train: [{path: a}], val_size: true}", "data.val_size is true", "whole number"),
        ("data: {train: [{path: a}], val_size: .nan}", "data.val_size is nan", "whole number"),
        ("data: {train: [{path: a}], packing: 1}", "data.packing is 1", "true or false"),
    ],
)
def test_data(mistakes: Any, line: str, start: str, fix: str) -> None:
    (message,) = mistakes(MODEL + line)
    assert message.startswith(start)
    assert fix in message
    assert ("(recipe.yaml:2)" if line else "(recipe.yaml)") in message


@pytest.mark.parametrize(
    ("line", "starts", "fix"),
    [
        ("", ["model.name_or_path is missing"], "model.name_or_path=./"),
        ("model: x", ["model is the text 'x'"], "name_or_path, template"),
        ("model: {name_or_path: ''}", ["model.name_or_path is the text ''"], "not empty"),
        (
            "model: {name_or_path: x, quantization: int4}",
            ["model.quantization is the text 'int4'"],
            "say nf4, or null",
        ),
        ("model: {name_or_path: x, dtype: float16}", ["model.dtype is"], "bfloat16 or float32"),
        ("model: {name_or_path: x, tokenizer: [1]}", ["model.tokenizer is a list"], "text"),
        (
            "model: {name_or_path: x, tokenizer: {vocab_size: 3}}",
            ["model.tokenizer.vocab_size is 3", "model.tokenizer builds"],
            "at least 257",
        ),
        (
            "model: {from_scratch: true, config: {hidden_size: 8}, tokenizer: t}",
            ["model.config is"],
            "model_type",
        ),
        (
            "model: {from_scratch: true, config: {model_type: x, a: [.nan]}, tokenizer: t}",
            ["model.config is"],
            "finite",
        ),
    ],
)
def test_model(mistakes: Any, line: str, starts: list[str], fix: str) -> None:
    messages = mistakes(DATA + line)
    assert len(messages) == len(starts)
    assert all(message.startswith(start) for message, start in zip(messages, starts, strict=True))
    assert fix in messages[0]


CONTRADICTIONS = {
    "streaming without an end": (
        MODEL + DATA.replace("]}", "], streaming: true}"),
        ["data.streaming", "train.max_steps"],
    ),
    "half a conversation": (
        MODEL + DATA.replace("]}", "], overlong: split}"),
        ["data.overlong", "sft", "pretrain"],
    ),
    "answers without conversations": (
        "mode: pretrain\n" + MODEL + DATA.replace("]}", "], train_on: last}"),
        ["data.train_on", "pretrain"],
    ),
    "end marks without conversations": (
        "mode: pretrain\n" + MODEL + DATA.replace("]}", "], train_on_eot: false}"),
        ["data.train_on_eot is false", "pretrain"],
    ),
    "a system text without conversations": (
        "mode: pretrain\n" + MODEL + DATA.replace("a}", "a, system: x}"),
        ["data.train[0].system", "pretrain"],
    ),
    "a file with a configuration": (
        MODEL + DATA.replace("a}", "a}, {path: b, name: x}"),
        ["data.train[1].name", "data.train[1].path", "hf://"],
    ),
    "a file with a split": (
        MODEL + DATA.replace("a}", "a, split: test}"),
        ["data.train[0].split", "data.train[0].path", "hf://"],
    ),
    "validation rows that weigh": (
        MODEL + DATA.replace("]}", "], validation: [{path: b, weight: 2}]}"),
        ["data.validation[0].weight", "max_samples"],
    ),
    "4 bits without adapter": (
        MODEL.replace("}", ", quantization: nf4}") + DATA,
        ["model.quantization", "adapter", "full fine-tuning"],
    ),
    "packing without a length": (
        MODEL + DATA.replace("]}", "], max_length: null}"),
        ["data.packing", "data.max_length"],
    ),
    "validation twice": (
        MODEL + DATA.replace("]}", "], val_size: 0.1, validation: [{path: b}]}"),
        ["data.validation", "data.val_size"],
    ),
    "config without from_scratch": (
        MODEL.replace("}", ", config: ./c}") + DATA,
        ["model.config", "model.from_scratch"],
    ),
    "tokenizer settings without from_scratch": (
        MODEL.replace("}", ", tokenizer: {type: bpe}}") + DATA,
        ["model.tokenizer", "model.from_scratch"],
    ),
    "from_scratch without config": (
        "model: {from_scratch: true, tokenizer: t}\n" + DATA,
        ["model.from_scratch", "model.config"],
    ),
    "from_scratch without tokenizer": (
        "model: {from_scratch: true, config: ./c}\n" + DATA,
        ["model.from_scratch", "model.tokenizer"],
    ),
    "from_scratch with a model": (
        "model: {from_scratch: true, config: ./c, tokenizer: t, name_or_path: ./m}\n" + DATA,
        ["model.from_scratch", "model.name_or_path"],
    ),
    "from_scratch with adapter": (
        "model: {from_scratch: true, config: ./c, tokenizer: t}\nadapter: {}\n" + DATA,
        ["model.from_scratch", "adapter"],
    ),
    "from_scratch in 4 bits": (
        "model: {from_scratch: true, config: ./c, tokenizer: t, quantization: nf4}\n" + DATA,
        ["model.from_scratch", "model.quantization"],
    ),
}


@pytest.mark.parametrize(("text", "names"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_name_all_their_keys(mistakes: Any, text: str, names: list[str]) -> None:
    (message,) = mistakes(text)
    assert all(name in message for name in names)
    assert "(recipe.yaml:" in message


def test_the_sections_check_themselves() -> None:
    """Contradictions are validators of the models, so nobody gets a stage without them."""
    stage = {
        "name": "a",
        "model": {"name_or_path": "m"},
        "data": {"train": [{"path": "a"}], "max_length": None},
    }
    with pytest.raises(ValidationError) as caught:
        Stage.model_validate({**stage, "train": {"seed": "x"}})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [
        (CONTRADICTION, ("data", "max_length")),
        ("int_type", ("train", "seed")),
    ]
    with pytest.raises(ValidationError):
        DataConfig(train=[DataSource(path="a")], max_length=None)
    assert DataConfig(train=[DataSource(path="a")], max_length=None, packing=False).max_length is None


def test_pretraining_needs_no_template(load: Any) -> None:
    assert load("mode: pretrain\n" + MODEL + DATA).stages[0].model.template is None


def test_everything_is_told_at_once(mistakes: Any) -> None:
    text = """\
mode: rlhf
model: {name_or_path: ./m, quantization: nf4}
data:
  train:
    - path: a
      formt: text
  max_length: null
train:
  lr: 1e-4
  seed: x
"""
    messages = mistakes(text, "epochs", "train.max_steps=1.5", "zzz=1")
    assert [message.partition(":")[0] for message in messages] == [
        "'epochs' is not an override (command line)",
        "mode is the text 'rlhf' (recipe.yaml",
        "unknown key data.train[0].formt (recipe.yaml",
        "train.max_steps is 1.5 (command line)",
        "train.seed is the text 'x' (recipe.yaml",
        "unknown key train.lr (recipe.yaml",
        "unknown key zzz (command line)",
        "model.quantization is nf4 but there is no adapter",
        "data.packing is true and data.max_length is null",
    ]
    for number, message in (
        (1, messages[1]),
        (6, messages[2]),
        (10, messages[4]),
        (9, messages[5]),
        (7, messages[8]),
    ):
        assert f"recipe.yaml:{number})" in message
    assert not any("\n" in message for message in messages)
