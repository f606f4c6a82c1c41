from __future__ import annotations

import pytest
import torch
from toy import ToyModel, ToySource, ToyTask

from pyft.trainer.evaluate import EvaluationStopped, evaluating, measure
from pyft.trainer.questions import Completion, Question, ask


def nothing():
    pass


def test_validation_loss_is_the_mean_over_all_targets():
    """Not the mean of the batches' means: the batches have unequal numbers of targets."""
    model, source = ToyModel(), ToySource(4, empty=[2])
    with evaluating(model):
        row = measure(ToyTask(), model, source, nothing)
        batches = [source.batch(0, index) for index in (0, 1, 3)]
        logits = torch.cat([model(batch.input_ids) for batch in batches]).double()
    targets = torch.cat([batch.targets.reshape(-1) for batch in batches])
    picked = targets >= 0
    expected = -logits[picked].log_softmax(-1).gather(1, targets[picked, None]).mean()
    num_targets = row["eval_num_target_tokens"]
    assert num_targets == int(picked.sum()) == sum(batch.num_targets for batch in batches)
    assert row["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert row["eval_perplexity"] == pytest.approx(expected.exp().item(), rel=1e-6)


def test_no_target_gives_nan_not_zero():
    row = measure(ToyTask(), ToyModel(), ToySource(2, empty=[0, 1]), nothing)
    assert row["eval_loss"] != row["eval_loss"] and row["eval_num_target_tokens"] == 0


def test_evaluating_leaves_no_trace():
    model = ToyModel().train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(EvaluationStopped), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(100)
        raise EvaluationStopped
    assert model.training and torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)


def test_evaluating_keeps_a_model_in_evaluation():
    model = ToyModel().eval()
    with evaluating(model):
        pass
    assert not model.training


def test_polled_before_every_batch():
    polls = []

    def poll():
        polls.append(1)
        if len(polls) == 3:
            raise EvaluationStopped

    with pytest.raises(EvaluationStopped):
        measure(ToyTask(), ToyModel(), ToySource(5), poll)
    assert len(polls) == 3


def test_ask_gives_rows():
    questions = [Question("世界最高峰是什么峰？", [5, 6])]
    facts = {"stage": "sft", "step": 3, "when": "during"}
    answers = list(ask(questions, lambda ids: Completion(f"{ids}", stopped=True), nothing, facts))
    assert answers == [{**facts, "prompt": "世界最高峰是什么峰？", "completion": "[5, 6]", "stopped": True}]
