"""Load what a run produced, as it was trained: the base in its quantisation, and the adapter on it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from pyft.errors import ConfigError, first_line
from pyft.model.adapter_files import apply_adapter
from pyft.model.architecture import DTYPES
from pyft.model.load import load_model
from pyft.model.weight_files import stored_dtype
from pyft.run.result import Result


def load_result(result: Result, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load a result in evaluation mode; what cannot be loaded, or does not fit, is a ConfigError."""
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


def load_result_tokenizer(result: Result) -> Any:
    """Load the tokenizer a result was trained with; one that is missing or broken is a ConfigError."""
    try:
        return AutoTokenizer.from_pretrained(
            str(result.tokenizer), local_files_only=True, trust_remote_code=result.trust_remote_code
        )
    except Exception as error:
        raise ConfigError(
            f"the tokenizer cannot be loaded ({result.tokenizer}): {first_line(error)}"
        ) from error
