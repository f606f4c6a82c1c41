from __future__ import annotations

import json
import math

import pytest
import torch
from toy import (
    VOCABULARY,
    ToyBatch,
    ToyModel,
    ToySource,
    rows,
    same_run,
    toy_loss,
    toy_run,
    toy_trainer,
    trained,
)

from pyft.config.schema import TrainConfig
from pyft.errors import ConfigError, DataError, NumericsError, OutOfMemory
from pyft.tasks.task import Loss
from pyft.trainer.schedule import learning_rate_at
from pyft.trainer.settings import TrainSettings

ROW_KEYS = [
    "stage",
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "num_tokens",
    "num_target_tokens",
    "peak_memory_bytes",
]


class Joined:
    """Each batch is `width` batches of another source in one."""

    def __init__(self, source, width):
        self.source, self.width = source, width
        self.num_batches = source.num_batches // width

    def batch(self, epoch, index):
        parts = [self.source.batch(epoch, index * self.width + part) for part in range(self.width)]
        return ToyBatch(
            torch.cat([part.input_ids for part in parts], 1),
            torch.cat([part.targets for part in parts], 1),
            sum(part.num_targets for part in parts),
            sum(part.num_tokens for part in parts),
        )


def log_lines(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [row for row in log_lines(folder) if "loss" in row]


def test_a_step_equals_adamw_by_hand_in_float64(tmp_path):
    """Two steps of the loop against AdamW written out, on the mean over all targets of a window."""
    numbers = {
        "max_steps": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 0.05,
        "warmup_steps": 0,
        "weight_decay": 0.1,
        "max_grad_norm": 0.3,
    }
    settings = TrainSettings.of(TrainConfig(**numbers))
    source = ToySource(6)
    trainer, model = toy_trainer(
        tmp_path, source=source, model=ToyModel(dropout=0.0), settings=numbers, questions=False
    )
    reference = ToyModel(dropout=0.0).double()
    trainer.run()

    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in trained(reference).items()}
    for step in (1, 2):
        window = [source.batch(0, 3 * (step - 1) + index) for index in range(3)]
        logits = torch.cat([reference(batch.input_ids) for batch in window])
        targets = torch.cat([batch.targets.reshape(-1) for batch in window])
        picked = targets >= 0
        loss = -logits[picked].log_softmax(-1).gather(1, targets[picked, None]).mean()
        parameters = {name: p for name, p in reference.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, parameters.values())
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        scale = min(1.0, 0.3 / norm)
        rate = learning_rate_at(settings, step, 2)
        with torch.no_grad():
            for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
                first, second = moments[name]
                first.lerp_(gradient * scale, 0.1)
                second.lerp_((gradient * scale) ** 2, 0.001)
                if p.ndim >= 2:
                    p -= rate * 0.1 * p
                p -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        row = steps_of(tmp_path)[step - 1]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert row["num_target_tokens"] == int(picked.sum())
    for name, p in trained(model).items():
        torch.testing.assert_close(p.double(), trained(reference)[name], rtol=1e-4, atol=1e-6)


def test_accumulation_of_four_equals_a_batch_of_four(tmp_path):
    source = ToySource(8)
    settings = {"max_steps": 2, "warmup_steps": 0, "eval_steps": None}
    parts, whole = ToyModel(dropout=0.0), ToyModel(dropout=0.0)
    toy_run(
        tmp_path / "a", model=parts, source=source, settings={**settings, "gradient_accumulation_steps": 4}
    )
    toy_run(
        tmp_path / "b",
        model=whole,
        source=Joined(source, 4),
        settings={**settings, "gradient_accumulation_steps": 1},
    )
    counts = [source.batch(0, index).num_targets for index in range(4)]
    assert len(set(counts)) == 4  # the mean of the batches' means would be another loss
    for a, b in zip(steps_of(tmp_path / "a"), steps_of(tmp_path / "b"), strict=True):
        assert a["num_target_tokens"] == b["num_target_tokens"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    for name, p in trained(parts).items():
        torch.testing.assert_close(p, trained(whole)[name], rtol=1e-4, atol=1e-5)


def test_log_rows_have_the_promised_keys(tmp_path):
    toy_run(tmp_path, memory_fn=lambda: 12345)
    steps = steps_of(tmp_path)
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert all(list(row) == ROW_KEYS for row in steps)
    assert all(row["peak_memory_bytes"] == 12345 and row["stage"] == "toy" for row in steps)
    assert [row["epoch"] for row in steps[:4]] == [0.285714, 0.571429, 0.857143, 1.0]
    assert [row["num_tokens"] for row in steps[:4]] == [26, 26, 26, 13]  # the epoch's last window is shorter
    evaluations = [row for row in log_lines(tmp_path) if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [3, 6, 8]
    assert all("loss" not in row for row in evaluations)
    assert all(row["eval_perplexity"] == pytest.approx(math.exp(row["eval_loss"])) for row in evaluations)


def test_equal_runs_write_equal_rows(tmp_path, straight):
    toy_run(tmp_path / "again")
    same_run(straight, tmp_path / "again")


def test_another_seed_is_another_run(tmp_path, straight):
    toy_run(tmp_path, settings={"seed": 43})
    assert [row["loss"] for row in rows(tmp_path)[1:3]] != [row["loss"] for row in rows(straight)[1:3]]


def test_learning_lowers_the_loss(tmp_path):
    source = ToySource(4)
    source.batch = lambda epoch, index: ToySource(4).batch(0, index)
    result, _ = toy_run(
        tmp_path,
        source=source,
        settings={"max_steps": 20, "eval_steps": None, "save_steps": None, "gradient_accumulation_steps": 4},
        model=ToyModel(dropout=0.0),
    )
    losses = [row["loss"] for row in steps_of(tmp_path)]
    assert losses[-1] < 0.75 * losses[0]
    assert result.last_loss == losses[-1]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10), (0.1, 1)])
def test_epochs_make_steps(tmp_path, epochs, steps):
    result, _ = toy_run(tmp_path, settings={"max_steps": None, "num_train_epochs": epochs}, questions=False)
    assert result.step == result.total_steps == steps


def test_max_steps_win_over_epochs(tmp_path):
    result, _ = toy_run(tmp_path, settings={"max_steps": 5, "num_train_epochs": 1}, questions=False)
    assert result.step == 5


def test_window_without_targets_changes_nothing(tmp_path, capsys):
    seen = {}

    def remember(folder):
        seen[len(seen) + 1] = {name: p.clone() for name, p in trained(model).items()}

    model = ToyModel()
    toy_run(
        tmp_path,
        model=model,
        source=ToySource(7, empty=[2, 3]),
        save_weights=lambda folder: (remember(folder), (folder / "weights.safetensors").write_bytes(b"w")),
        settings={"max_steps": 3, "save_steps": 1, "warmup_steps": 0},
        questions=False,
    )
    empty = steps_of(tmp_path)[1]
    assert set(empty) == {*ROW_KEYS, "skipped"}
    assert empty["skipped"] is True and empty["loss"] is None and empty["grad_norm"] is None
    assert empty["num_target_tokens"] == 0 and empty["num_tokens"] == 26
    assert all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    assert not all(torch.equal(seen[2][name], seen[3][name]) for name in seen[1])
    assert "step 2 is skipped: 0 trained tokens" in capsys.readouterr().out


def test_many_windows_without_targets_are_no_numeric_error(tmp_path):
    result, _ = toy_run(
        tmp_path, source=ToySource(10, empty=range(8)), settings={"max_steps": 5}, questions=False
    )
    assert result.num_skipped_steps == 4


def test_batch_without_targets_in_a_window_is_not_run(tmp_path):
    ran = []

    def objective(model, batch):
        ran.append(batch.num_targets)
        return toy_loss(model, batch)

    source = ToySource(4, empty=[1])
    toy_run(
        tmp_path,
        objective=objective,
        source=source,
        validation=ToySource(1, empty=[0]),
        questions=False,
        settings={"max_steps": 2},
    )
    assert ran == [source.batch(0, index).num_targets for index in (0, 2, 3)]


def test_nan_gradient_skips_the_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYFT_FAULT", "nan_grad@2,nan_grad@5,nan_grad@7")
    result, model = toy_run(tmp_path, settings={"eval_steps": None})
    steps = steps_of(tmp_path)
    assert [row["step"] for row in steps if row.get("skipped")] == [2, 5, 7]
    assert set(steps[1]) == {*ROW_KEYS, "skipped"}
    assert steps[1]["grad_norm"] is None and steps[1]["loss"] != 0.0
    assert all(p.isfinite().all() for p in trained(model).values())
    assert result.num_skipped_steps == 3 and result.step == 8
    assert "step 5 is skipped: loss" in (out := capsys.readouterr().out) and "(2 so far)" in out


def test_nan_loss_is_null_in_the_row(tmp_path):
    model = ToyModel()
    calls = []

    def objective(model, batch):
        calls.append(batch)
        loss = toy_loss(model, batch)
        return Loss(loss.sum * (math.inf if len(calls) == 3 else 1.0), loss.count)

    toy_run(tmp_path, model=model, objective=objective, settings={"max_steps": 3}, questions=False)
    assert [row["loss"] is None for row in steps_of(tmp_path)] == [False, True, False]
    assert all(p.isfinite().all() for p in trained(model).values())


def test_three_in_a_row_stop_the_run_with_the_weights_before(tmp_path, monkeypatch):
    _, before = toy_run(tmp_path / "short", settings={"max_steps": 3, "lr_scheduler_type": "constant"})
    monkeypatch.setenv("PYFT_FAULT", "nan_grad@4,nan_grad@5,nan_grad@6")
    trainer, model = toy_trainer(tmp_path / "run", settings={"lr_scheduler_type": "constant"})
    with pytest.raises(NumericsError, match="not finite 3 steps in a row"):
        trainer.run()
    assert all(torch.equal(p, trained(before)[name]) for name, p in trained(model).items())
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "run" / "finished.json").exists()


def test_skipped_in_a_row_survives_a_resumption(tmp_path, monkeypatch, forge):
    folder = tmp_path / "run"
    fault = "nan_grad@3,nan_grad@4,nan_grad@5"
    assert forge.run(folder=folder, fault=f"{fault},kill_before_rotate@4") == -9
    assert forge.run(folder=folder, fault=fault) == 6


@pytest.mark.parametrize("which", ["fault", "cpu"])
def test_out_of_memory_says_what_was_asked(tmp_path, monkeypatch, which):
    if which == "fault":
        monkeypatch.setenv("PYFT_FAULT", "oom@3")
        trainer, _ = toy_trainer(tmp_path, questions=False)
    else:
        trainer, _ = toy_trainer(tmp_path, questions=False, objective=lambda model, batch: torch.empty(2**50))
    with pytest.raises(OutOfMemory) as caught:
        trainer.run()
    text = str(caught.value)
    for name in ("per_device_train_batch_size", "max_length", "gradient_checkpointing"):
        assert name in text
    assert (
        ("1.00 GiB more" in text and "step 3" in text) if which == "fault" else f"{2**52} bytes more" in text
    )


def test_evaluation_runs_without_dropout_and_training_with_it(tmp_path):
    model = ToyModel()
    modes = {"train": set(), "eval": set()}

    def objective(model, batch):
        modes["eval" if not torch.is_grad_enabled() else "train"].add(model.training)
        return toy_loss(model, batch)

    model.eval()
    toy_run(tmp_path, model=model, objective=objective)
    assert modes == {"train": {True}, "eval": {False}}


def test_samples_are_asked_before_during_and_after(tmp_path):
    toy_run(tmp_path)
    samples = rows(tmp_path, "samples.jsonl")
    assert [(row["step"], row["when"], row["prompt"]) for row in samples] == [
        (step, when, prompt)
        for step, when in ((0, "before"), (3, "during"), (6, "during"), (8, "after"))
        for prompt in ("one?", "two?")
    ]
    assert set(samples[0]) == {"stage", "step", "when", "prompt", "completion", "stopped"}


def test_result_is_put_in_place_without_following_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter.bin").symlink_to(victim)

    def save_result(staging):
        (staging / "adapter.bin").write_text("weights")
        (staging / "tokenizer").mkdir()
        (staging / "tokenizer" / "vocab.json").write_text("{}")

    toy_run(folder, save_result=save_result, settings={"max_steps": 2})
    assert victim.read_text() == "mine"
    assert (folder / "adapter.bin").read_text() == "weights" and not (folder / "adapter.bin").is_symlink()
    assert (folder / "tokenizer" / "vocab.json").read_text() == "{}"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert json.loads((folder / "finished.json").read_text())["step"] == 2


def test_bfloat16_trains_float32_masters(tmp_path):
    """Steps far below a bfloat16 step of most weights add up; a resumed run continues from the masters."""
    settings = {
        "max_steps": 20,
        "learning_rate": 2e-4,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "eval_steps": None,
        "save_steps": None,
    }

    def run(name, dtype, **changed):
        model = ToyModel(dropout=0.0, dtype=dtype)
        before = model.head.weight.detach().float().clone()
        toy_run(tmp_path / name, model=model, settings={**settings, **changed}, questions=False)
        assert model.head.weight.dtype == dtype
        return (model.head.weight.detach().float() - before).abs().sum()

    moved = run("whole", torch.bfloat16)
    assert 0.7 < moved / run("float32", torch.float32) < 1.4
    run("parts", torch.bfloat16, max_steps=10)
    run("parts", torch.bfloat16)
    for name in ("optimizer.safetensors", "weights.safetensors"):
        parts, whole = (tmp_path / run / "checkpoint-20" / name for run in ("parts", "whole"))
        assert parts.read_bytes() == whole.read_bytes()


def test_objective_that_counts_otherwise_is_an_error(tmp_path):
    trainer, _ = toy_trainer(
        tmp_path, objective=lambda model, batch: Loss(toy_loss(model, batch).sum, 1), questions=False
    )
    with pytest.raises(RuntimeError, match="summed over 2 targets, the batches say"):
        trainer.run()


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="no batch"):
        toy_trainer(tmp_path, source=ToySource(0))
    trainer, _ = toy_trainer(tmp_path, model=ToyModel().requires_grad_(False))
    with pytest.raises(ConfigError, match="no trainable parameter"):
        trainer.run()


def test_perplexity_of_a_hopeless_model_is_null_not_an_error(tmp_path):
    model = ToyModel()
    with torch.no_grad():
        model.head.weight.mul_(1e6)
    toy_run(tmp_path, model=model, settings={"max_steps": 1, "learning_rate": 0.0}, questions=False)
    row = log_lines(tmp_path)[-1]
    assert row["eval_perplexity"] is None and row["eval_loss"] > VOCABULARY
