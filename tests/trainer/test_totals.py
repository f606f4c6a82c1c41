from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from device_waits import Waits
from toy import ToyModel, ToySource, ToyTask, rows, toy_loss, toy_run

from pyft.tasks.task import Loss
from pyft.trainer.totals import Totals, add_metrics


def test_sums_are_added_up_and_divided_once():
    """Not the mean of means: the batches have unequal counts. Numbers may come from anywhere."""
    totals = Totals()
    totals.add(Loss(torch.tensor(6.0), 3, {"hits": (torch.tensor(1), 3), "margin": (0.5, 1)}))
    totals.add(Loss(torch.tensor(1.0, dtype=torch.bfloat16), 1, {"hits": (torch.tensor(1), 1)}))
    assert totals.fetch(norm=torch.tensor(2.5)) == {
        "norm": 2.5,
        "loss": 7 / 4,
        "hits": 2 / 4,
        "margin": 0.5,
    }


def test_nothing_counted_is_nan_and_not_zero():
    totals = Totals()
    assert math.isnan(totals.fetch()["loss"])
    totals.add(Loss(torch.tensor(0.0), 1, {"pairs": (0.0, 0)}))
    assert totals.fetch()["loss"] == 0.0 and math.isnan(totals.fetch()["pairs"])


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_metric_replaces_no_other_number(name):
    totals = Totals()
    with pytest.raises(ValueError, match=f"the name of another field: {name}"):
        totals.add(Loss(torch.tensor(1.0), 1, {name: (1.0, 1)}))
        totals.fetch(grad_norm=torch.tensor(1.0))
    with pytest.raises(ValueError, match="step"):
        add_metrics({"step": 1}, {"step": 2.0})


class PairTask(ToyTask):
    """Counts batches, as a preference task counts pairs, and measures something of them."""

    def objective(self, model, batch):
        loss = toy_loss(model, batch)
        return Loss(loss.sum / batch.num_targets, 1, {"rewards/margins": (loss.sum.detach() * 2, 2)})

    def count(self, batch):
        return 1

    def evaluation_metrics(self, loss):
        return {}


def test_a_task_counts_what_its_loss_is_of(tmp_path):
    """The log's loss is the mean over what the task counts; tokens are counted beside it."""
    toy_run(tmp_path / "pairs", task=PairTask(), questions=False, settings={"max_steps": 3})
    toy_run(tmp_path / "tokens", questions=False, settings={"max_steps": 3})
    step, other = rows(tmp_path / "pairs")[0], rows(tmp_path / "tokens")[0]
    assert step["num_target_tokens"] == other["num_target_tokens"] == 2 + 7
    model = ToyModel().train()
    torch.manual_seed(42)
    losses = [toy_loss(model, ToySource(7).batch(0, index)) for index in (0, 1)]
    assert step["loss"] == pytest.approx(sum(loss.sum.item() / loss.count for loss in losses) / 2, rel=1e-6)
    assert step["rewards/margins"] == pytest.approx(sum(loss.sum.item() for loss in losses) / 2, rel=1e-6)
    evaluation = rows(tmp_path / "pairs")[-1]
    assert list(evaluation) == [
        "stage",
        "step",
        "epoch",
        "eval_loss",
        "eval_num_target_tokens",
        "eval_rewards/margins",
    ]


def test_metrics_of_a_skipped_step_are_in_its_row(tmp_path, monkeypatch):
    monkeypatch.setenv("PYFT_FAULT", "nan_grad@2")
    toy_run(tmp_path, task=PairTask(), questions=False, settings={"max_steps": 3, "eval_steps": None})
    first, second = rows(tmp_path)[:2]
    assert second["skipped"] is True and set(second) == {*first, "skipped"}


def test_a_step_waits_for_the_device_once(tmp_path, monkeypatch):
    """Loss, metrics and norm of all micro-batches come in one copy, and nothing else is asked for."""
    copies = Counter()
    tolist = torch.Tensor.tolist

    def counted(tensor):
        copies["tolist"] += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    # The generators' states are lists too, taken at the end alone: around the evaluation and the save.
    for place in ("record", "evaluate"):
        monkeypatch.setattr(f"pyft.trainer.{place}.same_rng_after", nullcontext)
    settings = {"max_steps": 5, "gradient_accumulation_steps": 3, "eval_steps": None, "save_steps": None}
    with Waits() as waits:
        toy_run(
            tmp_path,
            source=ToySource(15),
            validation=ToySource(2),
            task=PairTask(),
            questions=False,
            settings=settings,
        )
    assert waits.seen == {}
    assert copies == {"tolist": 5 + 1}  # and one of the evaluation at the end
