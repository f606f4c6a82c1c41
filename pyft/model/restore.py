"""Load what a run produced, as it was trained: the base in its quantisation, and the adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from pyft.errors import ConfigError, first_line
from pyft.model.adapters import attach_adapters
from pyft.model.architecture import DTYPES
from pyft.model.load import load_model
from pyft.model.save import load_adapter_weights, read_adapter_config
from pyft.model.weight_files import stored_dtype
from pyft.run.result import Result


def load_result(result: Result, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load a result as it was trained: the base in its quantisation, and the adapter on it.

    What cannot be loaded, or does not fit, is a ConfigError.

    Args:
        result: from `find_result`.
        device: where it goes.

    Returns:
        The model in evaluation mode.
    """
    weights = result.base or result.folder
    dtype = DTYPES[result.dtype] if result.base is not None and result.dtype else stored_dtype(weights)
    model = load_model(
        weights,
        dtype=dtype,
        quantization=result.quantization if result.base is not None else None,
        double_quant=result.double_quant,
        device=device,
        trust_remote_code=result.trust_remote_code,
    )
    if result.base is not None:
        apply_adapter(model, result.folder)
    return model.eval()


def apply_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """Attach an adapter's layers to a model and read their weights; one that does not fit is a ConfigError.

    Args:
        model: the base, changed in place.
        folder: with an adapter in PEFT's layout.
    """
    content = read_adapter_config(folder)
    attach_adapters(
        model,
        r=content["r"],
        lora_alpha=content.get("lora_alpha", 8),  # PEFT's default
        lora_dropout=content.get("lora_dropout", 0.0),
        target_modules=content["target_modules"],
        seed=0,
    )
    load_adapter_weights(model, folder)


def load_result_tokenizer(result: Result) -> Any:
    """Load the tokenizer a result was trained with.

    Args:
        result: from `find_result`.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: it is missing or broken.
    """
    try:
        return AutoTokenizer.from_pretrained(
            str(result.tokenizer), local_files_only=True, trust_remote_code=result.trust_remote_code
        )
    except Exception as error:
        raise ConfigError(
            f"the tokenizer cannot be loaded ({result.tokenizer}): {first_line(error)}"
        ) from error
