"""The names in a run's folder, each written here and nowhere else.

    output_dir/                   of a run, or of one stage of it
      .pyft.lock                  held while the run writes here
      config.yaml                 the resolved recipe; above the stages' folders too
      tokenizer/                  one that was built from the training texts
      trainer_log.jsonl           one row a step
      samples.jsonl               answers to the questions asked during training
      checkpoint-20/              the trained weights as in the result, and
        optimizer.safetensors       moments, step counts, float32 master weights
        rng_state.safetensors       every generator
        trainer_state.json          position, counters, lengths of the logs, identity
        manifest.json               size and SHA-256 of every other file
      superseded-checkpoint-40/   of a course that a resumption left
      adapter_config.json, adapter_model.safetensors                      the result: an adapter,
      config.json, generation_config.json, model.safetensors (or shards)  or a whole model
      training_loss.png           the losses drawn
      finished.json               last: the run has ended
      merged/                     the adapter in its base, for the next stage

What is not whole yet, or no more, has a name that begins with a dot.
"""

from __future__ import annotations

import re
from pathlib import Path

LOCK = ".pyft.lock"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer"
LOG = "trainer_log.jsonl"
SAMPLES = "samples.jsonl"
PLOT = "training_loss.png"
FINISHED = "finished.json"
MERGED = "merged"

OPTIMIZER = "optimizer.safetensors"
RNG_STATE = "rng_state.safetensors"
TRAINER_STATE = "trainer_state.json"
MANIFEST = "manifest.json"

# As PEFT and transformers name them.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.(checkpoint-\d+|result)\.(staging|trash)")
RESULT = "result"
"""What the result's files are called together, while they are staged."""


def checkpoint_name(step: int) -> str:
    """Name the checkpoint of a step."""
    return f"checkpoint-{step}"


def checkpoint_step(path: Path) -> int | None:
    """Read the step off a checkpoint's name; None for another name."""
    match = _CHECKPOINT.fullmatch(path.name)
    return None if match is None else int(match[1])


def trash_name(path: Path) -> str:
    """Name what is being removed, until it is gone."""
    return f".{path.name}.trash"


def superseded_name(checkpoint: Path) -> str:
    """Name a checkpoint that no resumption is to look at."""
    return f"superseded-{checkpoint.name}"


def is_leftover(path: Path) -> bool:
    """Tell whether a process that was killed left this half-written or half-removed."""
    return _LEFTOVER.fullmatch(path.name) is not None


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Find the checkpoints of a run, whole or not, oldest first, as (step, folder)."""
    if not folder.is_dir():
        return []
    steps = ((checkpoint_step(path), path) for path in folder.iterdir())
    return sorted((step, path) for step, path in steps if step is not None and path.is_dir())
