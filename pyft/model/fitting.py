"""Whether a model fits what it is given: the tokenizer's entries, the samples' lengths."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from pyft.errors import ConfigError

logger = logging.getLogger(__name__)


def check_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """Refuse, with a ConfigError, a tokenizer whose num_tokens entries are more than the embedding's rows."""
    rows = model.get_input_embeddings().weight.shape[0]
    if num_tokens > rows:
        raise ConfigError(
            f"the tokenizer has {num_tokens} entries, the model's embedding only {rows} (model.tokenizer): "
            "take the tokenizer that belongs to the model, or first save the model with "
            f"resize_token_embeddings({num_tokens}), and train from that"
        )


def fit_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """Lengthen embedding and head to a row for each of the tokenizer's entries: the mean of the others."""
    rows = model.get_input_embeddings().weight.shape[0]
    if num_tokens <= rows:
        return
    # transformers' own start values take a covariance of all rows.
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for tensor in (module.weight, getattr(module, "bias", None)):
            if tensor is not None:
                tensor.data[rows:] = tensor.data[:rows].float().mean(dim=0)
    logger.warning(
        "the embedding grows from %d to %d rows to hold all tokens; new rows start as the mean of the others",
        rows,
        num_tokens,
    )


def check_positions(model: PreTrainedModel, longest: int) -> None:
    """Check that the longest sample, in tokens, fits the model's positions: rotary ones stretch.

    A model that learned its positions, and fewer, is a ConfigError.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or longest <= positions:
        return
    said = (
        f"samples have up to {longest} tokens, {type(model).__name__} was made for only {positions} positions"
    )
    if not getattr(model.config, "rope_parameters", None):
        raise ConfigError(f"{said} (data.max_length): lower it to {positions}")
    logger.warning("%s (data.max_length): it may not use what lies beyond", said)
