"""From a stage's configuration to what the trainer takes: model, questions, identity, numbers.

This and `stages` are the only places where configuration meets data, model and trainer: below them everything
takes plain arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pyft.config.schema import Stage
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.prepare import PreparedData
from pyft.errors import ConfigError
from pyft.model.adapters import attach_adapters
from pyft.model.architecture import init_model
from pyft.model.device import cuda_problem
from pyft.model.fitting import check_positions, check_vocabulary, fit_vocabulary
from pyft.model.generate import generate
from pyft.model.isolation import check_isolation
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.model.trained import folder_digest
from pyft.tasks.task import Task
from pyft.trainer.questions import Completion, Generate, Question


def device_of(stage: Stage) -> str:
    """Choose "cpu" or "cuda". With `auto`, say why a GPU that is there is not used."""
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


def build_model(stage: Stage, base: str | None, tokenizer: Any, data: PreparedData, device: str) -> nn.Module:
    """Make the stage's model, ready to train: loaded or begun, checked against the data, adapters attached.

    `base` is the folder of the model to start from, unused with `from_scratch`. What is trained requires a
    gradient.
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


def build_questions(
    stage: Stage, task: Task, tokenizer: Any, template: ChatTemplate | None
) -> list[Question]:
    """Encode `train.evaluation_inputs` as the task asks them."""
    system = stage.data.system if stage.train.evaluation_system is None else stage.train.evaluation_system
    return [
        Question(prompt, task.prompt_ids(prompt, system, tokenizer, template))
        for prompt in stage.train.evaluation_inputs
    ]


def build_generate(
    model: nn.Module,
    tokenizer: Any,
    *,
    max_new_tokens: int,
    stop_token_ids: list[int],
    should_stop: Callable[[], bool],
) -> Generate:
    """Make the function that answers a question, greedily; `should_stop` is asked at each token."""

    def answer(input_ids: list[int]) -> Completion:
        ids, stopped = generate(
            model,
            input_ids,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            should_stop=should_stop,
        )
        return Completion(tokenizer.decode(ids, skip_special_tokens=True), stopped)

    return answer


def run_identity(
    stage: Stage,
    base: str | None,
    tokenizer: Any,
    template: ChatTemplate | None,
    data: PreparedData,
    device: str,
) -> dict[str, Any]:
    """Collect what the numbers of a run depend on beside the trainer's settings: a resumed run must share it.

    The base model's folder is read whole, since contents count and not times.
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
