"""Run a recipe: one stage after another, each built from its configuration and handed to the trainer.

    recipe ── stage ─┬─ tokenizer, template ── data ── ledger, one sample shown
                     ├─ plan: start, continue, or finished already      (all before any weight is read)
                     └─ model (+ adapters) ── trainer ── result ── the next stage's base

A stage's result is the next one's base, an adapter merged into its own base first.
"""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyft.assemble import build_generate, build_model, build_questions, device_of, run_identity
from pyft.config.load import Recipe
from pyft.config.schema import Stage
from pyft.config.yaml_text import dump_yaml
from pyft.data.batches.prefetch import PrefetchedBatches
from pyft.data.batches.streaming import StreamedBatches
from pyft.data.chat.bind import get_template
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.prepare import PreparedData, prepare
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.data.show.ledger import format_ledger
from pyft.disk import replace_file
from pyft.merge import merge_run
from pyft.model.adapters import trainable_state
from pyft.model.generate import add_end_marks
from pyft.model.heads import head_of
from pyft.model.layers.fused import describe_fused
from pyft.model.peak_memory import memory_kind, peak_memory_bytes, reset_peak_memory
from pyft.model.trained import TrainedWeights
from pyft.run import layout
from pyft.run.lock import claim_folder
from pyft.run.resume import Plan, plan_run
from pyft.tasks.registry import task_of
from pyft.trainer.loop import Trainer
from pyft.trainer.settings import TrainSettings
from pyft.trainer.signals import SignalWatch


def run_recipe(recipe: Recipe) -> None:
    """Run every stage; finished ones are skipped. What was saved before an error is whole."""
    output_dir = Path(recipe.output_dir)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(SignalWatch())
        stack.enter_context(claim_folder(output_dir))
        tokenizer = tokenizer_for(recipe, recipe.stages[0])
        base = recipe.stages[0].model.name_or_path
        for number, stage in enumerate(recipe.stages, start=1):
            if recipe.staged:
                print(f"\n=== stage {number}/{len(recipe.stages)}: {stage.name} ===", flush=True)
                stack.enter_context(claim_folder(Path(stage.train.output_dir)))
            run = _StageRun(recipe, stage, base, tokenizer, signals)
            run.run()
            if number < len(recipe.stages):
                base = run.base_for_next()
    print(f"\ntalk to it: python -m pyft.chat {_shown(output_dir)}", flush=True)


@dataclass(frozen=True)
class _Prepared:
    """What is known about a stage before any weight is read."""

    template: ChatTemplate | None
    data: PreparedData
    plan: Plan


class _StageRun:
    """One stage: prepare, train, leave the result in its folder."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        base: str | None,
        tokenizer: Any,
        signals: SignalWatch,
    ) -> None:
        self._recipe, self._stage, self._base = recipe, stage, base
        self._tokenizer, self._signals = tokenizer, signals
        self._task, self._device = task_of(stage), device_of(stage)
        self._folder = Path(stage.train.output_dir)

    def run(self) -> None:
        """Train the stage, unless it is finished already."""
        prepared = self._prepare()
        if prepared.plan.finished is not None:
            print(*prepared.plan.messages, sep="\n", flush=True)
            return
        self._write_config()
        reset_peak_memory(self._device)
        model = build_model(self._stage, self._base, self._tokenizer, prepared.data, self._device)
        if self._task.mode.has_template:
            add_end_marks(model, self._task.stop_ids(self._tokenizer, prepared.template))
        trained = sum(parameter.numel() for parameter in trainable_state(model).values())
        print(f"{type(model).__name__}: {trained:,} trained parameters, on {self._device}", flush=True)
        print(describe_fused(model), flush=True)
        if isinstance(head := head_of(model), str):
            print(f"the loss goes through logits: {head}", flush=True)
        self._signals.check()
        with PrefetchedBatches(prepared.data.train, self._stage.train.gradient_accumulation_steps) as train:
            result = self._trainer(model, prepared, train).run()
        if isinstance(prepared.data.train, StreamedBatches):
            print(prepared.data.train.describe(), flush=True)
        skipped = f", {result.num_skipped_steps} skipped" if result.num_skipped_steps else ""
        print(
            f"{self._stage.name}: {result.step} steps{skipped}, "
            f"peak memory {peak_memory_bytes(self._device) / 1e9:.2f} GB ({memory_kind(self._device)}), "
            f"result in {_shown(self._folder)}",
            flush=True,
        )

    def base_for_next(self) -> str:
        """Return the folder of a whole model; an adapter is merged into its own base, once."""
        if self._stage.adapter is None:
            return str(self._folder)
        merged = self._folder / layout.MERGED
        if not merged.exists():
            merge_run(self._folder, self._base, merged, trust_remote_code=self._stage.model.trust_remote_code)
        return str(merged)

    def _prepare(self) -> _Prepared:
        stage, tokenizer = self._stage, self._tokenizer
        template = None
        if self._task.mode.has_template or stage.model.template is not None:
            template = get_template(stage.model.template, tokenizer)
            # The template travels in the saved tokenizer.
            tokenizer.chat_template = template.source
        self._signals.check()
        data = prepare(stage, tokenizer, template, poll=self._signals.check)
        print(*data.notes, format_ledger(data.ledger), data.preview, sep="\n", flush=True)
        self._signals.check()
        settings = TrainSettings.of(stage.train)
        identity = run_identity(stage, self._base, tokenizer, template, data, self._device)
        plan = plan_run(
            self._folder,
            stage.train.resume_from_checkpoint,
            settings.total_steps(data.train.num_batches),
            {**identity, "train": settings.identity()},
        )
        return _Prepared(template, data, plan)

    def _trainer(self, model: nn.Module, prepared: _Prepared, train: PrefetchedBatches) -> Trainer:
        stage, task, tokenizer, template = self._stage, self._task, self._tokenizer, prepared.template
        weights = TrainedWeights(model, getattr(torch, stage.model.dtype), self._base)

        def save_result(folder: Path) -> None:
            weights.save(folder)
            tokenizer.save_pretrained(folder)

        return Trainer(
            model=model,
            task=task,
            train=train,
            validation=prepared.data.validation,
            settings=TrainSettings.of(stage.train),
            plan=prepared.plan,
            folder=self._folder,
            stage=stage.name,
            save_weights=weights.save,
            load_weights=weights.load,
            save_result=save_result,
            questions=build_questions(stage, task, tokenizer, template),
            generate=build_generate(
                model,
                tokenizer,
                max_new_tokens=stage.train.evaluation_max_new_tokens,
                stop_token_ids=task.stop_ids(tokenizer, template),
                should_stop=self._signals.stop_requested,
            ),
            memory_fn=lambda: peak_memory_bytes(self._device),
            trackers=stage.train.report_to,
            signals=self._signals,
        )

    def _write_config(self) -> None:
        """Leave the stage's own resolved configuration in its folder, and a staged recipe's above it."""
        staged = self._recipe.staged
        resolved = self._stage.model_dump(mode="json") if staged else copy.deepcopy(self._recipe.resolved)
        resolved["model"]["name_or_path"] = self._base
        if isinstance(resolved["model"]["tokenizer"], dict):
            built = Path(self._recipe.output_dir) / layout.TOKENIZER
            self._tokenizer.save_pretrained(built)
            resolved["model"]["tokenizer"] = str(built)
        _write_yaml(self._folder / layout.CONFIG, resolved)
        if staged:
            _write_yaml(Path(self._recipe.output_dir) / layout.CONFIG, self._recipe.resolved)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, dump_yaml(content).encode())


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
