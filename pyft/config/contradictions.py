"""What does not fit together in a stage, though each value alone is fine.

The checks read the plain mapping, not the validated one, so that they are reported together with wrong types
and unknown keys. A value of a wrong type is left to the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyft.config.key_path import KeyPath
from pyft.config.names import known_names


@dataclass(frozen=True)
class Contradiction:
    """Values that exclude each other: where to look, what it is, how to mend it."""

    path: KeyPath
    what: str
    mend: str


def contradictions(stage: dict[str, Any], *, is_first: bool) -> Iterator[Contradiction]:
    """Finds what does not fit together.

    Args:
        stage: the plain mapping of one stage, merged, with mappings (or wrong types) for its sections.
        is_first: whether it needs a model of its own; a later stage starts from a result.

    Yields:
        One entry per contradiction.
    """
    has_adapter = stage.get("adapter") is not None
    quantization = _value(stage, "model", "quantization")
    from_scratch = _value(stage, "model", "from_scratch") is True
    if quantization == "nf4" and not has_adapter and not from_scratch:
        yield Contradiction(
            ("model", "quantization"),
            f"model.quantization is {quantization} but there is no adapter: 4-bit weights cannot be trained",
            "add an adapter (adapter: {}) for QLoRA, or remove model.quantization for full fine-tuning",
        )
    if _value(stage, "data", "packing") is True and _value(stage, "data", "max_length") is None:
        yield Contradiction(
            ("data", "max_length"),
            "data.packing is true and data.max_length is null: a pack needs a length",
            "set data.max_length, or data.packing: false",
        )
    if _value(stage, "data", "validation") and _given(stage, "data", "val_size") not in (None, 0):
        yield Contradiction(
            ("data", "val_size"),
            "data.validation and data.val_size are both given",
            "keep data.validation for files of its own, or data.val_size to split some off data.train",
        )
    if is_first:
        yield from _about_the_start(stage, from_scratch, has_adapter, quantization)


def _about_the_start(
    stage: dict[str, Any], from_scratch: bool, has_adapter: bool, quantization: Any
) -> Iterator[Contradiction]:
    config, tokenizer = _value(stage, "model", "config"), _value(stage, "model", "tokenizer")
    name = _value(stage, "model", "name_or_path")
    scratch_path: KeyPath = ("model", "from_scratch")
    if not from_scratch:
        if config is not None:
            yield Contradiction(
                ("model", "config"),
                "model.config is given without model.from_scratch",
                "add model.from_scratch: true, or remove model.config (a model brings its own)",
            )
        if isinstance(tokenizer, dict):
            yield Contradiction(
                ("model", "tokenizer"),
                "model.tokenizer builds a tokenizer without model.from_scratch: a model brings its own",
                "remove it, or give the path of a tokenizer, or add model.from_scratch: true",
            )
        if name is None and isinstance(stage.get("model"), dict):
            yield Contradiction(
                ("model", "name_or_path"),
                "model.name_or_path is missing",
                "give the model's folder, as model.name_or_path=./Qwen2.5-7B-Instruct",
            )
        return
    if name is not None:
        yield Contradiction(
            scratch_path,
            "model.from_scratch is true and model.name_or_path is given",
            "keep one: random weights, or those of a model",
        )
    if config is None:
        yield Contradiction(
            scratch_path,
            "model.from_scratch is true without model.config",
            "give the model's shape in model.config: a folder with a config.json, or its keys",
        )
    if tokenizer is None:
        yield Contradiction(
            scratch_path,
            "model.from_scratch is true without model.tokenizer",
            "give a tokenizer's path, or build one with model.tokenizer: {type: bpe, vocab_size: 4096}",
        )
    if has_adapter or quantization is not None:
        both = " and ".join(
            name
            for name, on in (("adapter", has_adapter), ("model.quantization", quantization is not None))
            if on
        )
        yield Contradiction(
            scratch_path,
            f"model.from_scratch is true with {both}: random weights have to be trained themselves",
            f"remove {both}, or start from a model with model.name_or_path",
        )


def _given(stage: dict[str, Any], section: str, key: str) -> Any:
    mapping = stage.get(section)
    return mapping.get(key) if isinstance(mapping, dict) else None


def _value(stage: dict[str, Any], section: str, key: str) -> Any:
    """Gives what is written, else the default; None where the section is of a wrong type."""
    mapping = stage.get(section)
    if not isinstance(mapping, dict):
        return None
    return mapping.get(key, known_names()[section, key].get_default(call_default_factory=True))
