"""Tokenizers and samples that a model has no room for are refused, or it grows."""

from __future__ import annotations

import pytest
import torch
from tiny_models import byte_tokenizer, random_model

from pyft.errors import ConfigError
from pyft.model.fitting import check_positions, check_vocabulary, fit_vocabulary
from pyft.model.load import load_model


def test_tokenizer_longer_than_the_embedding(tmp_path):
    model = random_model("llama")
    check_vocabulary(model, 131)
    with pytest.raises(ConfigError, match="tokenizer has 259 entries, the model's embedding only 131"):
        check_vocabulary(model, len(byte_tokenizer()))


@pytest.mark.parametrize("tie", [True, False])
def test_an_embedding_that_trains_grows_to_the_tokenizer(tmp_path, tie, caplog):
    model = random_model("llama", tie_word_embeddings=tie)
    old = model.get_input_embeddings().weight.detach().clone()
    old_head = model.get_output_embeddings().weight.detach().clone()
    fit_vocabulary(model, 131)
    assert not caplog.records
    fit_vocabulary(model, 140)
    assert "from 131 to 140 rows" in caplog.text
    check_vocabulary(model, 140)
    for module, before in ((model.get_input_embeddings(), old), (model.get_output_embeddings(), old_head)):
        assert torch.equal(module.weight[:131], before)
        torch.testing.assert_close(module.weight[131:], before.mean(dim=0).expand(9, -1))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == tie and model.config.vocab_size == 140
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_samples_longer_than_the_positions(caplog):
    check_positions(random_model("llama"), 256)
    assert not caplog.records
    check_positions(random_model("llama"), 257)
    assert "257 tokens" in caplog.text and "256" in caplog.text
    learned = random_model("gpt2", n_embd=64, n_head=4, n_layer=1, max_position_embeddings=32)
    check_positions(learned, 32)
    with pytest.raises(ConfigError, match=r"33 tokens, .*only 32 positions \(data\.max_length\)"):
        check_positions(learned, 33)
