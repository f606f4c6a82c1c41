from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import pack, random_samples
from torch import nn

from pyft.ops import reference
from pyft.tasks.next_token import next_token_loss
from pyft.tasks.perplexity import perplexity


class UnknownHead(nn.Linear):
    """A linear head that is not known as one, so that it has to give the logits itself."""


class Bigram(nn.Module):
    """The smallest causal language model: the hidden state of a token is its row of a table."""

    def __init__(self, *, kind: type[nn.Linear] = nn.Linear, bias: bool = False, scale: float = 1.0):
        super().__init__()
        self.table, self.head, self.scale, self.softcap = nn.Embedding(11, 8), kind(8, 11, bias), scale, None
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return lambda input_ids, **_: (self.table(input_ids),)

    def forward(self, input_ids, **_):
        logits = self.head(self.table(input_ids)) * self.scale
        return SimpleNamespace(
            logits=self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits
        )


@pytest.fixture
def batch():
    samples = random_samples([6, 7], vocab_size=11)
    return pack(samples, [[-100] * 4 + samples[0][4:], [-100] * 4 + samples[1][4:]])


@pytest.mark.parametrize("kind", [nn.Linear, UnknownHead])
def test_sum_over_targets_and_their_number(batch, kind):
    model = Bigram(kind=kind)
    loss = next_token_loss(model, batch)
    loss.sum.backward()
    table, head = (p.detach().double().requires_grad_() for p in (model.table.weight, model.head.weight))
    targets = batch.targets.reshape(-1)
    picked = targets >= 0
    logits = table[batch.input_ids[0]][picked] @ head.T
    expected = -logits.log_softmax(-1).gather(1, targets[picked, None]).sum()
    expected.backward()
    assert loss.count == 5 and loss.sum.dtype == torch.float32
    assert loss.sum.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(model.table.weight.grad.double(), table.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.head.weight.grad.double(), head.grad, rtol=1e-4, atol=1e-5)


def test_head_is_looked_up_at_each_batch(batch):
    model = Bigram()
    first = next_token_loss(model, batch).sum.item()
    model.head = nn.Linear(8, 11, bias=False)
    nn.init.zeros_(model.head.weight)
    second = next_token_loss(model, batch).sum.item()
    assert first != second
    assert second == pytest.approx(5 * torch.tensor(11.0).log().item(), rel=1e-5)


def test_bias_scale_and_cap_reach_the_loss(batch):
    model = Bigram(bias=True, scale=0.5)
    model.softcap = 2.0
    loss = next_token_loss(model, batch).sum
    hidden, head, bias = model.table(batch.input_ids[0]), model.head.weight, model.head.bias
    expected = reference.linear_cross_entropy(
        hidden, head, batch.targets.reshape(-1), bias=bias, logit_scale=0.5, logit_softcap=2.0
    )
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (model.table.weight, head, bias)),
        torch.autograd.grad(expected, (model.table.weight, head, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_perplexity():
    assert perplexity(0.0) == 1.0 and perplexity(1e4) == float("inf")
    assert perplexity(float("nan")) != perplexity(float("nan"))
