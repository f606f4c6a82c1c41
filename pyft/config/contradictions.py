"""What does not fit together in a stage, though each value alone is fine.

The checks read the plain mapping, not the validated one, so that they are reported together with wrong types
and unknown keys. A value of a wrong type is left to the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyft.config.key_path import KeyPath, show_path
from pyft.config.modes import DEFAULT_MODE, known_mode
from pyft.config.names import known_names
from pyft.config.values import HUB_PREFIX


@dataclass(frozen=True)
class Contradiction:
    """Values that exclude each other: where to look, what it is, how to fix it."""

    path: KeyPath
    what: str
    fix: str


def contradictions(stage: dict[str, Any], *, is_first: bool) -> Iterator[Contradiction]:
    """Find what does not fit together.

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
    yield from _about_the_data(stage)
    for section in ("train", "validation"):
        yield from _about_the_sources(stage, section)
    if is_first:
        yield from _about_the_start(stage, from_scratch, has_adapter, quantization)


def _about_the_data(stage: dict[str, Any]) -> Iterator[Contradiction]:
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
    has_train = isinstance(stage.get("train"), dict)
    if (
        _value(stage, "data", "streaming") is True
        and has_train
        and _value(stage, "train", "max_steps") is None
    ):
        yield Contradiction(
            ("data", "streaming"),
            "data.streaming is true and train.max_steps is null: rows that are not counted have no epochs",
            "set train.max_steps, or data.streaming: false",
        )
    mode = known_mode(stage.get("mode", DEFAULT_MODE))
    if mode is not None and mode.has_template and _value(stage, "data", "overlong") == "split":
        yield Contradiction(
            ("data", "overlong"),
            f"data.overlong is split and the mode is {mode.name}: half a conversation is no conversation",
            "say drop, truncate or error; split is for mode pretrain",
        )
    in_answers = (("train_on", "assistant"), ("train_on_eot", True))
    for key, default in in_answers if mode is not None and not mode.has_template else ():
        value = _value(stage, "data", key)
        if value not in (None, default):
            yield Contradiction(
                ("data", key),
                f"data.{key} is {str(value).lower()} and the mode is {mode.name}, which learns every token",
                f"remove it; a stage of mode sft can have it, as stages[1].data.{key}",
            )


def _about_the_sources(stage: dict[str, Any], section: str) -> Iterator[Contradiction]:
    sources, mode = _value(stage, "data", section), known_mode(stage.get("mode", DEFAULT_MODE))
    for index, source in enumerate(sources if isinstance(sources, list) else []):
        if not isinstance(source, dict):
            continue
        path: KeyPath = ("data", section, index)
        shown, place = show_path(path), source.get("path")
        is_local = isinstance(place, str) and not place.startswith(HUB_PREFIX)
        for key, default in (("name", None), ("split", "train")):
            if is_local and source.get(key, default) not in (None, default):
                yield Contradiction(
                    (*path, key),
                    f"{shown}.{key} is for data sets of the hub, and {shown}.path is a file",
                    f"remove it, or write the path as {HUB_PREFIX}owner/name",
                )
        if section == "validation" and source.get("weight", 1) not in (None, 1):
            yield Contradiction(
                (*path, "weight"),
                f"{shown}.weight says how often rows are learned, and these are only measured",
                "remove it; max_samples takes some of them",
            )
        if mode is not None and not mode.has_template and source.get("system"):
            yield Contradiction(
                (*path, "system"),
                f"{shown}.system is given and the mode is {mode.name}, in which there are no conversations",
                "remove it, or say mode: sft",
            )


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
    """Give what is written, else the default; None where the section is of a wrong type."""
    mapping = stage.get(section)
    if not isinstance(mapping, dict):
        return None
    return mapping.get(key, known_names()[section, key].get_default(call_default_factory=True))
