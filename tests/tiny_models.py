"""Tiny models of real architectures with random weights, and a byte-level tokenizer, for tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config_of(model_type: str, **changes: object):
    """A tiny config of an architecture."""
    return AutoConfig.for_model(model_type, **{**SMALL, **changes})


def random_model(
    model_type: str, *, seed: int = 0, spread: float = 0.15, attention: str = "eager", **changes: object
) -> PreTrainedModel:
    """A tiny float32 model with weights wide enough that attention patterns matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config_of(model_type, **changes), dtype=torch.float32, attn_implementation=attention
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, spread)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.05)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def saved_model(folder: Path, model_type: str = "llama", **changes: object) -> PreTrainedModel:
    """Write a tiny model as transformers does, and return it."""
    model = random_model(model_type, **changes)
    model.save_pretrained(folder)
    return model


def pack(samples: list[list[int]], labels: list[list[int]] | None = None) -> SimpleNamespace:
    """One row of samples, with targets shifted inside each sample."""
    labels = labels or samples
    ids = [i for sample in samples for i in sample]
    targets = [t for sample in labels for t in [*sample[1:], -100]]
    positions = [p for sample in samples for p in range(len(sample))]
    lengths = [len(sample) for sample in samples]
    return SimpleNamespace(
        input_ids=torch.tensor([ids]),
        targets=torch.tensor([targets]),
        position_ids=torch.tensor([positions]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max_seqlen=max(lengths),
        num_targets=sum(t != -100 for t in targets),
    )


def random_samples(lengths: list[int], *, vocab_size: int = 131, seed: int = 0) -> list[list[int]]:
    """Samples of random ids above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def byte_tokenizer(folder: Path | None = None, template: str | None = CHATML):
    """A byte-level tokenizer of 259 entries, no merges, with ChatML marks; saved when a folder is given."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    if folder is not None:
        wrapped.save_pretrained(folder)
    return wrapped
