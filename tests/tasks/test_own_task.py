"""A task that only this file knows, trained through everything that a recipe goes through."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import byte_tokenizer, random_model, saved_model
from torch.nn.functional import cross_entropy

from pyft import train
from pyft.config.load import load_recipe
from pyft.config.modes import MODES, Mode
from pyft.data.chat.bind import get_template, trained_template
from pyft.data.prepare import prepare
from pyft.errors import ConfigError
from pyft.model.forward import forward_logits
from pyft.run.result import find_result
from pyft.tasks.registry import TASKS, register_task
from pyft.tasks.task import Loss, Task

SMOOTHING = 0.1


class Smoothed(Task):
    """Label-smoothed answers: each other token is wanted a little too."""

    mode = Mode("smoothed", "conversations")

    def objective(self, model: Any, batch: Any) -> Loss:
        log_probs, targets = forward_logits(model, batch).float().log_softmax(-1), batch.targets[0]
        right = log_probs[targets >= 0].gather(1, targets[targets >= 0, None])
        total = -(1 - SMOOTHING) * right.sum() - SMOOTHING * log_probs[targets >= 0].mean(-1).sum()
        return Loss(total, batch.num_targets, {"confidence": (right.exp().sum(), batch.num_targets)})


@pytest.fixture
def registered() -> Iterator[None]:
    register_task(Smoothed)
    yield
    del MODES["smoothed"], TASKS["smoothed"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    saved_model(tmp_path / "base", "llama", vocab_size=259)
    byte_tokenizer(tmp_path / "base")
    rows = [{"query": f"{i} + {i}?", "response": f"{2 * i} " * (i % 5 + 1)} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "mode": "smoothed",
        "model": {"name_or_path": str(tmp_path / "base"), "dtype": "float32"},
        "adapter": {"r": 4, "lora_dropout": 0.0},
        "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}], "val_size": 4, "max_length": 96},
        "train": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.02,
            "warmup_steps": 0,
            "eval_steps": 2,
            "evaluation_inputs": ["1 + 1?"],
            "evaluation_max_new_tokens": 4,
            "device": "cpu",
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def expected_first_step(recipe: Path) -> tuple[float, float]:
    """The first step's loss by torch's own label smoothing, and the mean probability of its targets."""
    stage = load_recipe(str(recipe), []).stages[0]
    tokenizer = byte_tokenizer()
    source = prepare(stage, tokenizer, get_template(None, tokenizer)).train
    model = random_model("llama", vocab_size=259)  # the base; adapters begin at nothing
    total = confidence = num_targets = 0.0
    for batch in (source.batch(0, 0), source.batch(0, 1)):
        bounds = batch.cu_seqlens.tolist()
        for first, last in pairwise(bounds):
            logits = model(batch.input_ids[:, first:last]).logits[0].double()
            targets = batch.targets[0, first:last]
            total += cross_entropy(logits, targets, reduction="sum", label_smoothing=SMOOTHING).item()
            picked = logits.softmax(-1)[targets >= 0].gather(1, targets[targets >= 0, None])
            confidence += picked.sum().item()
            num_targets += len(picked)
    return total / num_targets, confidence / num_targets


@pytest.mark.usefixtures("registered")
def test_a_task_trains_and_its_metric_is_logged(recipe: Path, tmp_path: Path) -> None:
    train.train(argparse.Namespace(recipe=str(recipe), overrides=["data.num_workers=0"]))
    run = tmp_path / "run"
    log = rows_of(run, "trainer_log.jsonl")
    steps, evaluations = ([row for row in log if key in row] for key in ("loss", "eval_loss"))
    assert [row["step"] for row in steps] == [1, 2, 3, 4] and [row["step"] for row in evaluations] == [2, 4]
    loss, confidence = expected_first_step(recipe)
    assert steps[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert steps[0]["confidence"] == pytest.approx(confidence, rel=1e-5)
    assert all("confidence" in row and "eval_confidence" not in row for row in steps)
    assert all("eval_confidence" in row and "confidence" not in row for row in evaluations)
    assert all("eval_perplexity" not in row for row in evaluations)
    assert steps[-1]["confidence"] > steps[0]["confidence"]
    assert steps[-1]["loss"] < steps[0]["loss"] and evaluations[1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert [row["when"] for row in rows_of(run, "samples.jsonl")] == ["before", "during", "after"]
    assert (run / "adapter_model.safetensors").is_file()
    assert json.loads((run / "finished.json").read_text())["identity"]["mode"] == "smoothed"


@pytest.mark.usefixtures("registered")
def test_its_questions_are_asked_in_chat(recipe: Path) -> None:
    tokenizer = byte_tokenizer()
    template = get_template(None, tokenizer)
    ids = Smoothed().prompt_ids("1 + 1?", "Add.", tokenizer, template)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert Smoothed().stop_ids(tokenizer, template) == template.stop_token_ids(tokenizer)


def test_its_run_can_be_used_where_it_is_not_known(recipe: Path, tmp_path: Path) -> None:
    """Chat and merge read the mode of a run, and need nothing of the task."""
    register_task(Smoothed)
    try:
        train.train(argparse.Namespace(recipe=str(recipe), overrides=["train.max_steps=1"]))
    finally:
        del MODES["smoothed"], TASKS["smoothed"]
    result = find_result(tmp_path / "run")
    assert result.mode == "smoothed"
    tokenizer = byte_tokenizer()
    assert trained_template(result.mode, result.template, tokenizer).source == tokenizer.chat_template


def test_a_mode_that_is_not_registered_is_refused(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"mode is the text 'smoothed'.*say pretrain or sft"):
        load_recipe(str(recipe), [])


def test_two_tasks_of_one_mode_are_refused() -> None:
    class Other(Smoothed):
        mode = Mode("sft", "texts")

    with pytest.raises(ValueError, match="another mode 'sft'"):
        register_task(Other)
