"""What to write instead of a name that a recipe cannot have.

First the table of names that other tools use for the same thing, then the same word in another section, then
the nearest name by spelling.
"""

from __future__ import annotations

import difflib

from pyft.config.key_path import KeyPath, show_path
from pyft.config.names import Name, known_names, name_of

_WARMUP = "train.warmup_steps (below 1 it is a share of all steps)"
_ALWAYS_ADAMW = "nothing: the optimizer is always AdamW; remove it"
_ALWAYS_VARLEN = "nothing: attention is always exact and packed; remove it"
_ADAPTER = "adapter (a mapping with r, lora_alpha...; without it all weights are trained)"
_NF4 = "model.quantization: nf4"
_DTYPE = "model.dtype (bfloat16 or float32)"
_COSINE_KIND = "train.lr_scheduler_type"
_TRACKERS = "train.report_to (a list: tensorboard, wandb)"

FOREIGN_NAMES: dict[str, str] = {
    # data
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "seq_len": "data.max_length",
    "seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "model_max_length": "data.max_length",
    "block_size": "data.max_length",
    "dataset": "data.train (a list of path and format)",
    "datasets": "data.train (a list of path and format)",
    "dataset_dir": "data.train (a list of path and format)",
    "dataset_name": "data.train (a list of path and format)",
    "train_file": "data.train (a list of path and format)",
    "train_dataset": "data.train (a list of path and format)",
    "data_files": "data.train (a list of path and format)",
    "data_path": "data.train[0].path",
    "test_datasets": "data.validation (a list of path and format)",
    "eval_dataset": "data.validation (a list of path and format)",
    "val_dataset": "data.validation (a list of path and format)",
    "val_set_size": "data.val_size",
    "validation_split_percentage": "data.val_size (a share below 1, or a number of rows)",
    "test_size": "data.val_size",
    "pack_to_max_length": "data.packing",
    "sample_packing": "data.packing",
    "packed": "data.packing",
    "neat_packing": "data.packing",
    "default_system": "data.system",
    "system_prompt": "data.system",
    "dataset_map_fn": "data.train[0].format",
    "formatting": "data.train[0].format",
    # model
    "model_name_or_path": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "base_model": "model.name_or_path",
    "base_model_name_or_path": "model.name_or_path",
    "model_path": "model.name_or_path",
    "checkpoint_dir": "model.name_or_path",
    "tokenizer_name_or_path": "model.tokenizer",
    "tokenizer_path": "model.tokenizer",
    "tokenizer_config": "model.tokenizer",
    "chat_template": "model.template",
    "prompt_template": "model.template",
    "conversation_template": "model.template",
    "load_in_4bit": _NF4,
    "load_in_8bit": f"{_NF4} (4 bits are the only ones)",
    "quantization_bit": _NF4,
    "quantization_config": _NF4,
    "quantization_method": _NF4,
    "bnb_4bit_quant_type": _NF4,
    "bnb_4bit_use_double_quant": "model.double_quant",
    "double_quantization": "model.double_quant",
    "bnb_4bit_compute_dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "tf32": "nothing: remove it",
    "flash_attn": _ALWAYS_VARLEN,
    "flash_attention": _ALWAYS_VARLEN,
    "use_flash_attn": _ALWAYS_VARLEN,
    "attn_implementation": _ALWAYS_VARLEN,
    "use_varlen_attn": _ALWAYS_VARLEN,
    # adapter
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "rank": "adapter.r",
    "alpha": "adapter.lora_alpha",
    "dropout": "adapter.lora_dropout",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules: all-linear",
    "lora_attn_modules": "adapter.target_modules",
    "lora": _ADAPTER,
    "qlora": f"{_ADAPTER} and {_NF4}",
    "peft": _ADAPTER,
    "peft_config": _ADAPTER,
    "use_peft": _ADAPTER,
    "finetuning_type": _ADAPTER,
    # train
    "output": "train.output_dir",
    "work_dir": "train.output_dir",
    "save_dir": "train.output_dir",
    "logging_dir": "train.output_dir",
    "num_epochs": "train.num_train_epochs",
    "max_epochs": "train.num_train_epochs",
    "epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs",
    "max_iters": "train.max_steps",
    "num_steps": "train.max_steps",
    "max_steps_per_epoch": "train.max_steps",
    "micro_batch_size": "train.per_device_train_batch_size",
    "batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "accumulative_counts": "train.gradient_accumulation_steps",
    "grad_accum_steps": "train.gradient_accumulation_steps",
    "accumulate_grad_batches": "train.gradient_accumulation_steps",
    "lr": "train.learning_rate",
    "lr_scheduler": _COSINE_KIND,
    "scheduler": _COSINE_KIND,
    "warmup_ratio": _WARMUP,
    "num_warmup_steps": _WARMUP,
    "warmup": _WARMUP,
    "max_norm": "train.max_grad_norm",
    "clip_grad_norm": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "grad_clip": "train.max_grad_norm",
    "betas": "train.adam_beta1 and train.adam_beta2",
    "beta1": "train.adam_beta1",
    "beta2": "train.adam_beta2",
    "eps": "train.adam_epsilon",
    "optim": _ALWAYS_ADAMW,
    "optim_type": _ALWAYS_ADAMW,
    "optimizer": _ALWAYS_ADAMW,
    "use_activation_checkpointing": "train.gradient_checkpointing",
    "enable_activation_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "log_every_n_steps": "train.logging_steps",
    "log_interval": "train.logging_steps",
    "evaluation_freq": "train.eval_steps",
    "evaluation_strategy": "train.eval_steps",
    "eval_strategy": "train.eval_steps",
    "evals_per_epoch": "train.eval_steps",
    "save_strategy": "train.save_steps",
    "saves_per_epoch": "train.save_steps",
    "checkpoint_interval": "train.save_steps",
    "save_total": "train.save_total_limit",
    "max_keep_ckpts": "train.save_total_limit",
    "evaluation_prompts": "train.evaluation_inputs",
    "SYSTEM": "train.evaluation_system",
    "max_new_tokens": "train.evaluation_max_new_tokens",
    "resume": "train.resume_from_checkpoint",
    "resume_from": "train.resume_from_checkpoint",
    "auto_resume_from_checkpoints": "train.resume_from_checkpoint: auto",
    "overwrite_output_dir": "train.resume_from_checkpoint: null (starts fresh), or another train.output_dir",
    "random_seed": "train.seed",
    "use_wandb": _TRACKERS,
    "wandb_project": _TRACKERS,
    "visualizer": _TRACKERS,
    "metric_logger": _TRACKERS,
    "deepspeed": "nothing: there is no DeepSpeed here; quantization and gradient checkpointing save memory",
    "fsdp": "nothing: one GPU is used; quantization and gradient checkpointing save memory",
    # kind of training
    "stage": "mode: pretrain or sft (or `stages:` for several)",
    "task": "mode: pretrain or sft",
    "do_train": "nothing: pyft.train always trains; remove it",
}
"""Leaf name in axolotl, LLaMA-Factory, XTuner, torchtune, TRL or transformers -> what pyft calls it."""


def hint_for(path: KeyPath, prefix: str = "") -> str:
    """Says what to write instead of an unknown name.

    Args:
        path: the unknown place, inside a stage.
        prefix: what stands before it in the recipe, as `stages[1].`.

    Returns:
        A sentence for the end of an error message.
    """
    word = str(path[-1])
    foreign = FOREIGN_NAMES.get(word) or FOREIGN_NAMES.get(word.replace("-", "_"))
    if foreign is not None:
        return f"write {foreign}"
    nearest = _nearest(path)
    if nearest is not None:
        return f"did you mean {prefix}{show_path(_with_indices(nearest, path))}?"
    siblings = [name[-1] for name in known_names() if name[:-1] == name_of(path[:-1])]
    return f"remove it; known here: {', '.join(siblings)}" if siblings else "remove it"


def _nearest(path: KeyPath) -> Name | None:
    name = name_of(path)
    names = list(known_names())
    same_word = [known for known in names if known[-1] == name[-1]]
    if same_word:
        return max(same_word, key=lambda known: _likeness(known, name))
    siblings = {known[-1]: known for known in names if known[:-1] == name[:-1]}
    close = difflib.get_close_matches(name[-1], siblings, n=1, cutoff=0.7)
    if close:
        return siblings[close[0]]
    words = {known[-1]: known for known in names}
    close = difflib.get_close_matches(name[-1], words, n=1, cutoff=0.75)
    return words[close[0]] if close else None


def _likeness(one: Name, other: Name) -> float:
    return difflib.SequenceMatcher(None, show_path(one), show_path(other)).ratio()


def _with_indices(name: Name, path: KeyPath) -> KeyPath:
    """Gives a known name the indices of the path it stands for: data.train.path -> data.train[0].path."""
    result: list[str | int] = []
    for depth, step in enumerate(name):
        result.append(step)
        if depth + 1 < len(name) and name[: depth + 1] in (("data", "train"), ("data", "validation")):
            position = len(result)
            given = path[position] if len(path) > position and path[:position] == tuple(result) else 0
            result.append(given if isinstance(given, int) else 0)
    return tuple(result)
