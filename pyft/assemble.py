"""From a stage's configuration to what the trainer takes: model, objective, questions, identity, numbers.

This and `stages` are the only places where configuration meets data, model and trainer: below them everything
takes plain arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pyft.config.schema import Stage
from pyft.data.chat.bind import encode_text_prompt
from pyft.data.chat.chat_template import ChatTemplate
from pyft.errors import ConfigError
from pyft.model.adapters import attach_adapters
from pyft.model.architecture import init_model
from pyft.model.device import cuda_problem
from pyft.model.fitting import check_positions, check_vocabulary, fit_vocabulary
from pyft.model.forward import forward_hidden, forward_logits
from pyft.model.generate import generate
from pyft.model.heads import head_of
from pyft.model.isolation import check_isolation
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.model.trained import folder_digest
from pyft.trainer.objective import causal_lm_objective, logits_objective
from pyft.trainer.settings import Completion, Question, TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pyft.data.prepare import PreparedData
    from pyft.trainer.settings import Generate, Objective


def device_of(stage: Stage) -> str:
    """Choose where to train. With `auto`, a GPU that is there and cannot be used is told of.

    Args:
        stage: whose `train.device` counts.

    Returns:
        "cpu" or "cuda".

    Raises:
        ConfigError: CUDA is asked for and cannot be used.
    """
    wanted = stage.train.device
    if wanted == "cpu":
        return "cpu"
    problem = cuda_problem()
    if problem is None:
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(f"{problem} (train.device: cuda): fix that, or use cpu or auto")
    if torch.cuda.is_available():
        print(f"on the CPU, as {problem}", flush=True)
    return "cpu"


def build_model(
    stage: Stage, base: str | None, tokenizer: PreTrainedTokenizerBase, data: PreparedData, device: str
) -> PreTrainedModel:
    """Make the stage's model, ready to train: loaded or begun, checked against the data, adapters attached.

    Args:
        stage: the stage.
        base: folder of the model to start from; unused with `from_scratch`.
        tokenizer: the stage's.
        data: the stage's.
        device: where it goes.

    Returns:
        The model; what is trained requires a gradient.
    """
    settings, dtype = stage.model, getattr(torch, stage.model.dtype)
    common = {"dtype": dtype, "device": device, "trust_remote_code": settings.trust_remote_code}
    if settings.from_scratch:
        model = init_model(
            settings.config,
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            seed=stage.train.seed,
            **common,
        )
    else:
        model = load_model(
            base, quantization=settings.quantization, double_quant=settings.double_quant, **common
        )
    if stage.adapter is None:
        fit_vocabulary(model, len(tokenizer))
    check_vocabulary(model, len(tokenizer))
    check_positions(model, data.longest)
    check_isolation(model)
    if stage.adapter is not None:
        attach_adapters(model, **stage.adapter.model_dump(), seed=stage.train.seed)
    if stage.train.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model


def build_objective(model: PreTrainedModel) -> Objective:
    """Make the loss: from the hidden states, or from logits where the head is not a known one.

    Args:
        model: the model.

    Returns:
        The objective.
    """
    head = head_of(model)
    if isinstance(head, str):
        print(f"the loss goes through logits: {head}", flush=True)
        return logits_objective(lambda batch: forward_logits(model, batch))
    return causal_lm_objective(
        lambda batch: forward_hidden(model, batch),
        lambda: (head.weight, head.bias),
        logit_scale=head.scale,
        logit_softcap=head.softcap,
    )


def build_questions(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None
) -> list[Question]:
    """Encode the hand-written questions: as chat would send them, or in pretraining as text to go on with.

    Args:
        stage: the stage.
        tokenizer: its tokenizer.
        template: its chat template.

    Returns:
        One question for each of `train.evaluation_inputs`.
    """
    system = stage.data.system if stage.train.evaluation_system is None else stage.train.evaluation_system
    head = [{"role": "system", "content": system}] if system else []
    questions = []
    for prompt in stage.train.evaluation_inputs:
        if stage.mode == "pretrain" or template is None:
            ids = encode_text_prompt(tokenizer, prompt)
        else:
            ids = template.encode_prompt(tokenizer, [*head, {"role": "user", "content": prompt}])
        questions.append(Question(prompt, ids))
    return questions


def build_generate(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    should_stop: Callable[[], bool],
) -> Generate:
    """Make the function that answers a question, greedily.

    Args:
        stage: the stage.
        model: the model, as it is at the time of asking.
        tokenizer: its tokenizer.
        template: its chat template.
        should_stop: asked at each token.

    Returns:
        ids of a prompt -> completion.
    """
    in_chat = stage.mode != "pretrain" and template is not None
    stops = template.stop_token_ids(tokenizer) if in_chat else [tokenizer.eos_token_id]

    def answer(input_ids: list[int]) -> Completion:
        ids, stopped = generate(
            model,
            input_ids,
            max_new_tokens=stage.train.evaluation_max_new_tokens,
            stop_token_ids=stops,
            should_stop=should_stop,
        )
        return Completion(tokenizer.decode(ids, skip_special_tokens=True), stopped)

    return answer


def run_identity(
    stage: Stage,
    base: str | None,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    data: PreparedData,
    device: str,
) -> dict[str, Any]:
    """Collect what the numbers of a run depend on beside the trainer's settings: a resumed run must share it.

    Args:
        stage: the stage.
        base: folder of the model to start from; read whole, since contents count and not times.
        tokenizer: its tokenizer.
        template: its chat template.
        data: its data.
        device: where it trains.

    Returns:
        Plain JSON values.
    """
    settings = stage.model
    start: Any = {"config": settings.config} if settings.from_scratch else folder_digest(base)
    return {
        "mode": stage.mode,
        "base_model": start,
        "data": data.fingerprint,
        "tokenizer": _digest(tokenizer.backend_tokenizer.to_str()),
        "template": None if template is None else _digest(template.source),
        "adapter": None if stage.adapter is None else stage.adapter.model_dump(),
        "quantization": settings.quantization,
        "double_quant": settings.double_quant,
        "dtype": settings.dtype,
        "gradient_checkpointing": stage.train.gradient_checkpointing,
        "per_device_train_batch_size": stage.train.per_device_train_batch_size,
        "device": device,
        "world_size": 1,
    }


def train_settings(stage: Stage) -> TrainSettings:
    """Take the trainer's numbers out of a stage.

    Args:
        stage: the stage.

    Returns:
        The settings of the same names.
    """
    names = TrainSettings.__dataclass_fields__
    return TrainSettings(**{key: value for key, value in stage.train.model_dump().items() if key in names})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
