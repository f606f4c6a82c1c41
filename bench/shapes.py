"""Sizes of real models, and the shapes each operation is timed at.

T tokens, N out-features, K in-features, R adapter rank, V vocabulary; `counted` is the share of rows with a
target. `qlora_layer` and `qlora_step` take a model's sizes. `data_preparation` counts rows, turns in each (a
question and its answer), and processor cores; `collate` samples in a batch, and batches that the store holds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSizes:
    """Widths of one model: hidden, intermediate (MLP), vocabulary."""

    hidden: int
    intermediate: int
    vocabulary: int


QWEN_0_5B = ModelSizes(896, 4864, 151936)
LLAMA_3_8B = ModelSizes(4096, 14336, 128256)
INTERNLM2_7B = ModelSizes(4096, 14336, 92544)
QWEN_7B = ModelSizes(3584, 18944, 152064)

Shape = dict[str, float]


def _weights() -> list[Shape]:
    return [{"N": m.hidden, "K": m.hidden} for m in (QWEN_0_5B, LLAMA_3_8B)] + [
        {"N": LLAMA_3_8B.intermediate, "K": LLAMA_3_8B.hidden}
    ]


def _linears(tokens: tuple[int, ...]) -> list[Shape]:
    sizes = [(QWEN_0_5B.intermediate, QWEN_0_5B.hidden), (LLAMA_3_8B.hidden, LLAMA_3_8B.hidden)]
    return [{"T": t, "N": n, "K": k} for n, k in sizes for t in tokens]


SHAPES: dict[str, list[Shape]] = {
    "nf4_quantize": _weights(),
    "nf4_dequantize": _weights(),
    "nf4_linear": _linears((1, 16, 64, 128, 512)),
    "lora_linear": [{**shape, "R": 64} for shape in _linears((16, 512))],
    "lora_call": [{"T": 1, "N": 64, "K": 64, "R": 8}],
    "cross_entropy": [
        {"T": 512, "V": model.vocabulary, "counted": share}
        for model, share in ((QWEN_0_5B, 1.0), (QWEN_0_5B, 0.5), (INTERNLM2_7B, 0.5))
    ],
    "linear_cross_entropy": [
        {"T": 512, "K": QWEN_0_5B.hidden, "V": QWEN_0_5B.vocabulary, "counted": share}
        for share in (1.0, 0.5, 0.25)
    ],
    "rms_norm": [{"T": 512, "K": QWEN_0_5B.hidden}],
    "swiglu": [{"T": 512, "K": QWEN_0_5B.intermediate}],
    "rotary": [{"T": 512, "heads": 14, "kv_heads": 2, "head_dim": 64}],
    "qlora_step": [
        {
            "T": 512,
            "layers": 24,
            "hidden": QWEN_0_5B.hidden,
            "mlp": QWEN_0_5B.intermediate,
            "heads": 14,
            "kv_heads": 2,
            "V": QWEN_0_5B.vocabulary,
            "R": 64,
            "counted": 0.25,
        }
    ],
    "data_preparation": [{"rows": 4000, "turns": 1, "cores": 2}, {"rows": 2000, "turns": 4, "cores": 2}],
    "collate": [{"T": 8192, "samples": 32, "batches": 200}, {"T": 32768, "samples": 128, "batches": 50}],
}


def _cuda_linears(weights: tuple[tuple[int, int], ...], tokens: tuple[int, ...]) -> list[Shape]:
    return [{"T": t, "N": n, "K": k} for n, k in weights for t in tokens]


def _layer(model: ModelSizes, tokens: int, heads: int, kv_heads: int) -> Shape:
    sizes = {"hidden": model.hidden, "mlp": model.intermediate, "heads": heads, "kv_heads": kv_heads}
    return {"T": tokens, **sizes, "R": 16}


# Llama-3-8B's gate or up, its q or o; Qwen2.5-7B's down; InternLM2-7B's query, key and value in one.
_GATE, _QUERY, _DOWN, _WQKV = (14336, 4096), (4096, 4096), (3584, 18944), (6144, 4096)
_CORE_LINEARS = _cuda_linears((_GATE, _QUERY), (1, 16, 64, 128, 512, 2048))
_LLAMA_LOSS = {"T": 2048, "K": LLAMA_3_8B.hidden, "V": LLAMA_3_8B.vocabulary, "counted": 0.5}
_LLAMA_HEADS = {"T": 2048, "heads": 32, "kv_heads": 8, "head_dim": 128}
_SMALL_STEP = {
    "T": 2048,
    "layers": 24,
    "hidden": QWEN_0_5B.hidden,
    "mlp": QWEN_0_5B.intermediate,
    "heads": 14,
    "kv_heads": 2,
    "V": QWEN_0_5B.vocabulary,
    "R": 16,
    "counted": 0.5,
}

CORE_SHAPES: dict[str, list[Shape]] = {
    "nf4_quantize": [{"N": 14336, "K": 4096}],
    "nf4_dequantize": [{"N": n, "K": k} for n, k in (_GATE, _QUERY)],
    "nf4_linear": _CORE_LINEARS,
    "lora_linear": [{**shape, "R": 16} for shape in _cuda_linears((_GATE,), (16, 2048))],
    "cross_entropy": [{"T": 2048, "V": LLAMA_3_8B.vocabulary, "counted": 0.5}],
    "linear_cross_entropy": [_LLAMA_LOSS],
    "rms_norm": [{"T": 2048, "K": LLAMA_3_8B.hidden}],
    "swiglu": [{"T": 2048, "K": LLAMA_3_8B.intermediate}],
    "rotary": [_LLAMA_HEADS],
    "qlora_layer": [_layer(LLAMA_3_8B, 2048, 32, 8)],
    "qlora_step": [_SMALL_STEP],
}
"""What one short slot of a GPU's time is spent on."""

CUDA_SHAPES: dict[str, list[Shape]] = {
    "nf4_quantize": [{"N": n, "K": k} for n, k in (_GATE, _QUERY, _DOWN)],
    "nf4_dequantize": [{"N": n, "K": k} for n, k in (_GATE, _QUERY, _DOWN, _WQKV)],
    "nf4_linear": _CORE_LINEARS
    + _cuda_linears((_DOWN, _WQKV), (1, 16, 64, 128, 512, 2048))
    + _cuda_linears((_GATE,), (8192,)),
    "lora_linear": [
        {**shape, "R": rank}
        for rank in (16, 64)
        for shape in _cuda_linears((_GATE, _QUERY), (16, 512, 2048, 8192))
    ],
    "cross_entropy": [
        {"T": 2048, "V": model.vocabulary, "counted": share}
        for model in (LLAMA_3_8B, QWEN_7B, INTERNLM2_7B)
        for share in (1.0, 0.5)
    ],
    "linear_cross_entropy": [_LLAMA_LOSS]
    + [
        {"T": tokens, "K": model.hidden, "V": model.vocabulary, "counted": share}
        for model in (LLAMA_3_8B, QWEN_7B, INTERNLM2_7B)
        for tokens, share in ((2048, 1.0), (8192, 0.5))
    ],
    "rms_norm": [{"T": t, "K": m.hidden} for m in (QWEN_0_5B, LLAMA_3_8B, QWEN_7B) for t in (2048, 8192)],
    "swiglu": [{"T": t, "K": m.intermediate} for m in (QWEN_0_5B, LLAMA_3_8B, QWEN_7B) for t in (2048, 8192)],
    "rotary": [
        {**_LLAMA_HEADS, "T": tokens, "heads": heads, "kv_heads": kv_heads}
        for heads, kv_heads in ((32, 8), (28, 4))
        for tokens in (2048, 8192)
    ],
    "qlora_layer": [
        _layer(model, tokens, heads, kv_heads)
        for model, heads, kv_heads in ((LLAMA_3_8B, 32, 8), (QWEN_7B, 28, 4), (INTERNLM2_7B, 32, 8))
        for tokens in (512, 2048)
    ],
    "qlora_step": [_SMALL_STEP],
}
"""Everything worth knowing about a GPU."""

SMOKE_SHAPES: dict[str, list[Shape]] = {
    "nf4_quantize": [{"N": 48, "K": 80}],
    "nf4_dequantize": [{"N": 48, "K": 80}],
    "nf4_linear": [{"T": 5, "N": 48, "K": 80}],
    "lora_linear": [{"T": 5, "N": 48, "K": 80, "R": 4}],
    "lora_call": [{"T": 1, "N": 64, "K": 64, "R": 8}],
    "cross_entropy": [{"T": 9, "V": 101, "counted": 0.5}],
    "linear_cross_entropy": [{"T": 9, "K": 24, "V": 101, "counted": 0.5}],
    "rms_norm": [{"T": 9, "K": 40}],
    "swiglu": [{"T": 9, "K": 40}],
    "rotary": [{"T": 9, "heads": 4, "kv_heads": 2, "head_dim": 16}],
    "qlora_step": [
        {
            "T": 24,
            "layers": 2,
            "hidden": 64,
            "mlp": 192,
            "heads": 4,
            "kv_heads": 2,
            "V": 300,
            "R": 4,
            "counted": 0.5,
        }
    ],
    "qlora_layer": [{"T": 24, "hidden": 64, "mlp": 192, "heads": 4, "kv_heads": 2, "R": 4}],
    "data_preparation": [{"rows": 60, "turns": 2, "cores": 2}],
    "collate": [{"T": 96, "samples": 4, "batches": 40}],
}


def parse_shape(text: str, like: Shape) -> Shape:
    """Read `T=16,N=4096,K=4096`; it must have the names of `like`, a shape of the same operation."""
    shape: Shape = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        shape[name.strip()] = float(value) if "." in value else int(value)
    if shape.keys() != like.keys():
        raise ValueError(f"--shape {text}: needs exactly {', '.join(like)}")
    return shape


def format_shape(shape: Shape) -> str:
    """Write a shape the way `parse_shape` reads it, names and values in order."""
    return " ".join(f"{name}={value}" for name, value in shape.items())
