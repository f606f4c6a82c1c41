"""Whether samples that share a row stay apart."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from pyft.errors import ConfigError
from pyft.model.forward import forward_hidden
from pyft.model.probe import probe_batch, probing


def check_isolation(model: PreTrainedModel) -> None:
    """Make sure, by two forwards of a few tokens, that samples in one row do not see each other.

    An architecture that carries something from one sample into the next is a ConfigError.
    """
    with probing(model):
        together = forward_hidden(model, probe_batch(model, [3, 4]))[3:]
        alone = forward_hidden(model, probe_batch(model, [4]))
        scale = alone.float().abs().max().clamp_min(1e-6)
        tolerance = 1e-4 if alone.dtype == torch.float32 else 5e-2
        is_apart = bool((together.float() - alone.float()).abs().max() <= tolerance * scale)
    if not is_apart:
        raise ConfigError(
            f"{type(model).__name__} does not keep samples in one row apart, layers carry state along it: "
            "set data.packing=false, train.per_device_train_batch_size=1 and "
            "train.per_device_eval_batch_size=1"
        )
