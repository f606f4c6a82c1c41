"""Answer a prompt: transformers' own generation with a key-value cache, one sample, polled at every token.

A folder's generation_config may ask for sampling, repetition penalties and more; here only its end marks
count, so that the same call gives the same kind of answer for every model. Left out: beams, batches,
penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList


def generate(
    model: PreTrainedModel,
    input_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_token_ids: Sequence[int] = (),
    on_token: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    seed: int | None = None,
) -> tuple[list[int], bool]:
    """Continue a prompt until an end mark, the limit, or a request to stop.

    The model's training mode and torch's random state are the same afterwards as before, so that asking
    questions during training changes nothing.

    Args:
        model: a causal language model.
        input_ids: the prompt, not empty.
        max_new_tokens: limit of the answer, end mark included; 0 gives nothing.
        temperature: 0 takes the most likely token; above it samples.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum.
        stop_token_ids: end marks beside those of the model's generation_config.
        on_token: called with each token of the answer as it comes, end mark left out.
        should_stop: asked after each token; True ends the answer.
        seed: of the sampling; None draws on torch's present random state.

    Returns:
        The answer's ids without the end mark, and whether an end mark ended it.

    Raises:
        ValueError: an empty prompt.
    """
    if not input_ids:
        raise ValueError("generate: input_ids is empty, expects at least one token")
    if max_new_tokens <= 0:
        return [], False
    stops = sorted({*stop_token_ids, *_end_marks(model.generation_config)})
    watcher = _Watcher(frozenset(stops), on_token, should_stop)
    settings = {
        "max_new_tokens": max_new_tokens,
        "do_sample": temperature > 0,
        "eos_token_id": stops or None,
        "pad_token_id": stops[0] if stops else 0,
        "use_cache": True,
    }
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([list(input_ids)], device=device)
    training, own = model.training, model.generation_config
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        model.eval()
        # transformers fills every unset option from the model's own generation_config: show it an empty one.
        model.generation_config = GenerationConfig()
        try:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(**settings),
                stopping_criteria=StoppingCriteriaList([watcher]),
            )
        finally:
            model.generation_config = own
            model.train(training)
    answer = out[0, len(input_ids) :].tolist()
    stopped = bool(answer) and answer[-1] in stops
    return (answer[:-1] if stopped else answer), stopped


def add_end_marks(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Add end marks to the model's generation_config, so that whoever generates with it stops there too."""
    marks = sorted({*_end_marks(model.generation_config), *ids})
    if marks:
        model.generation_config.eos_token_id = marks


def _end_marks(config: GenerationConfig | None) -> list[int]:
    """List the end marks that a generation_config names as none, one, or a list."""
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


class _Watcher(StoppingCriteria):
    """Called by transformers after every token: passes it on and asks whether to continue."""

    def __init__(
        self,
        stops: frozenset[int],
        on_token: Callable[[int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._stops, self._on_token, self._should_stop = stops, on_token, should_stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_kwargs: object) -> Tensor:
        token = int(input_ids[0, -1])
        if self._on_token is not None and token not in self._stops:
            self._on_token(token)
        stop = self._should_stop is not None and self._should_stop()
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)
