"""Packing changes no loss and no gradient: prepared packs beside each sample alone in plain transformers."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from encoded import as_lists
from tiny_models import random_model

from pyft.data.chat.bind import get_template
from pyft.data.prepare import PreparedData, prepare
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.model.attention import NAME, register_packed_attention
from pyft.tasks.next_token import next_token_loss

# Rotary positions only say how far apart tokens are; GPT-2's learned ones say where each stands.
MODELS = [("llama", {}), ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2})]
WORDS = ["the", "mountain", "river", "runs", "deep", "high", "who", "世界", "高峰", "42", "<|im_end|>"]


def make_rows(mode: str, count: int = 14) -> list[dict]:
    rng = random.Random(4)

    def prose(longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    if mode == "pretrain":
        return [{"text": prose(60)} for _ in range(count)]
    rows = []
    for _ in range(count):
        talk = []
        for _ in range(rng.randint(1, 3)):
            talk.append({"role": "user", "content": prose(6)})
            talk.append({"role": "assistant", "content": prose(9), "loss": rng.random() < 0.7})
        talk[-1]["loss"] = True
        rows.append({"messages": talk})
    return rows


@pytest.fixture(params=["sft", "pretrain"])
def prepare_both(request, write_rows, make_recipe, tokenizer_folders):
    """Prepare the same rows, packed and not, two groups in a batch."""

    def run() -> tuple[list[PreparedData], int]:
        path = write_rows(make_rows(request.param))
        prepared = []
        for packing in (True, False):
            data = {"train": [{"path": str(path)}], "max_length": 96, "packing": packing, "val_size": 0}
            recipe = make_recipe(
                path,
                tokenizer_folders["bpe"],
                mode=request.param,
                data=data,
                train={"per_device_train_batch_size": 2},
            )
            stage = recipe.stages[0]
            tokenizer = tokenizer_for(recipe, stage)
            template = get_template("chatml", tokenizer) if request.param == "sft" else None
            prepared.append(prepare(stage, tokenizer, template))
        return prepared, len(tokenizer)

    return run


def run_pyft(model: torch.nn.Module, prepared: PreparedData) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one epoch as a single optimizer step: the sum over batches, divided once."""
    model.zero_grad()
    source = prepared.train
    total, count = torch.zeros(()), 0
    for index in range(source.num_batches):
        loss = next_token_loss(model, source.batch(0, index))
        loss.sum.backward()
        total, count = total + loss.sum.detach(), count + loss.count
    return total / count, {name: p.grad / count for name, p in model.named_parameters()}


def run_alone(model: torch.nn.Module, prepared: PreparedData) -> tuple[float, dict[str, torch.Tensor]]:
    """The same from transformers' own attention and torch's own loss, a sample at a time."""
    model.zero_grad()
    total, count = torch.zeros((), dtype=model.dtype), 0
    for sample in map(as_lists, prepared.train.samples):
        logits = model(torch.tensor([sample.input_ids])).logits[0, :-1]
        targets = torch.tensor(sample.labels[1:])
        loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        loss.backward()
        total, count = total + loss.detach(), count + int((targets != -100).sum())
    return total / count, {name: p.grad / count for name, p in model.named_parameters()}


def check_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Float32 beside float64: what leaks from a neighbour is a thousand times larger than rounding."""
    error = (actual.double() - expected).abs().max().item()
    assert error <= 1e-5 * max(expected.abs().max().item(), 1e-2), f"{name}: off by {error}"


@pytest.mark.parametrize(("model_type", "sizes"), MODELS)
def test_loss_and_gradients(prepare_both, model_type, sizes):
    register_packed_attention()
    (packed, unpacked), vocab_size = prepare_both()
    batches = [packed.train.batch(0, index) for index in range(packed.train.num_batches)]
    assert max(len(batch.cu_seqlens) for batch in batches) > 4, "nothing is packed"
    ids = [sorted(sample.input_ids.tolist() for sample in data.train.samples) for data in (packed, unpacked)]
    assert ids[0] == ids[1]
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, ids[0]))

    sizes = sizes | {"vocab_size": vocab_size, "tie_word_embeddings": False}
    alone = random_model(model_type, **sizes)
    ours = random_model(model_type, attention=NAME, **sizes)
    ours.load_state_dict(alone.state_dict())
    expected_loss, expected = run_alone(alone.double(), packed)
    for name, data in (("packed", packed), ("unpacked", unpacked)):
        loss, gradients = run_pyft(ours, data)
        check_close(loss, expected_loss, f"{name} loss")
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            check_close(gradient, expected[key], f"{name} {key}")
