"""Sizes of real models, and the shapes each operation is timed at.

T tokens, N out-features, K in-features, R adapter rank, V vocabulary; `counted` is the share of rows with a
target. `qlora_step` takes a whole model's sizes. `data_preparation` counts rows, turns in each (a question
and its answer), and processor cores.
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
    "cross_entropy": [
        {"T": 512, "V": model.vocabulary, "counted": share}
        for model, share in ((QWEN_0_5B, 1.0), (QWEN_0_5B, 0.5), (INTERNLM2_7B, 0.5))
    ],
    "linear_cross_entropy": [
        {"T": 512, "K": QWEN_0_5B.hidden, "V": QWEN_0_5B.vocabulary, "counted": share}
        for share in (1.0, 0.5, 0.25)
    ],
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
}

SMOKE_SHAPES: dict[str, list[Shape]] = {
    "nf4_quantize": [{"N": 48, "K": 80}],
    "nf4_dequantize": [{"N": 48, "K": 80}],
    "nf4_linear": [{"T": 5, "N": 48, "K": 80}],
    "lora_linear": [{"T": 5, "N": 48, "K": 80, "R": 4}],
    "cross_entropy": [{"T": 9, "V": 101, "counted": 0.5}],
    "linear_cross_entropy": [{"T": 9, "K": 24, "V": 101, "counted": 0.5}],
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
    "data_preparation": [{"rows": 60, "turns": 2, "cores": 2}],
}


def parse_shape(text: str, like: Shape) -> Shape:
    """Read a shape from the command line.

    Args:
        text: `T=16,N=4096,K=4096`.
        like: a shape of the same operation: every name of it must be given, and no other.

    Returns:
        The shape.

    Raises:
        ValueError: for a missing or unknown name, or a value that is no number.
    """
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
