"""Generation: greedy equals repeated forwards, every end mark counts, nothing else is disturbed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_model, random_samples
from transformers import GenerationConfig

from pyft.model.attention import NAME, register_packed_attention
from pyft.model.generate import generate


@pytest.fixture
def model():
    register_packed_attention()
    model = random_model("qwen3", attention=NAME)
    model.generation_config = GenerationConfig()
    return model


PROMPT = random_samples([6])[0]


def greedy_by_hand(model, count):
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_greedy_equals_repeated_forwards_and_streams(model):
    expected = greedy_by_hand(model, 8)
    streamed = []
    ids, stopped = generate(model, PROMPT, max_new_tokens=8, on_token=streamed.append)
    assert (ids, stopped) == (expected, False)
    assert streamed == expected


@pytest.mark.parametrize("where", ["argument", "config", "config list"])
def test_end_marks(model, where):
    expected = greedy_by_hand(model, 8)
    mark = expected[4]
    assert mark not in expected[:4]
    options = {}
    if where == "argument":
        options["stop_token_ids"] = [mark]
    else:
        model.generation_config.eos_token_id = mark if where == "config" else [130, mark]
        options["stop_token_ids"] = [129]
    streamed = []
    ids, stopped = generate(model, PROMPT, max_new_tokens=8, on_token=streamed.append, **options)
    assert (ids, stopped) == (expected[:4], True)
    assert streamed == expected[:4]


def test_should_stop_is_asked_at_every_token(model):
    calls = []
    ids, stopped = generate(
        model, PROMPT, max_new_tokens=8, should_stop=lambda: calls.append(1) or len(calls) == 3
    )
    assert (ids, stopped) == (greedy_by_hand(model, 3), False)
    assert len(calls) == 3


def test_the_models_own_sampling_wishes_do_not_count(model):
    expected = greedy_by_hand(model, 8)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, suppress_tokens=expected[:2]
    )
    model.generation_config = own
    assert generate(model, PROMPT, max_new_tokens=8)[0] == expected
    assert model.generation_config is own


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_state_and_training_mode_are_left_as_they_were(model, temperature):
    model.train()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = generate(model, PROMPT, max_new_tokens=12, temperature=temperature)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training and all(module.training for module in model.modules())
    assert generate(model, PROMPT, max_new_tokens=12, temperature=temperature) == first


def test_sampling_follows_its_seed_and_top_p(model):
    def draw(seed, top_p=1.0):
        return generate(model, PROMPT, max_new_tokens=12, temperature=2.0, top_p=top_p, seed=seed)[0]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(6)}) > 3
    assert draw(1, top_p=1e-6) == greedy_by_hand(model, 12)


def test_state_is_restored_when_a_callback_raises(model):
    def fail(_token):
        raise RuntimeError("stop here")

    own = model.generation_config
    model.train()
    with pytest.raises(RuntimeError, match="stop here"):
        generate(model, PROMPT, max_new_tokens=8, on_token=fail)
    assert model.training and model.generation_config is own


def test_empty_requests(model):
    assert generate(model, PROMPT, max_new_tokens=0) == ([], False)
    with pytest.raises(ValueError, match="input_ids is empty"):
        generate(model, [], max_new_tokens=3)
