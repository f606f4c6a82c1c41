"""The loop: windows of micro-batches, optimizer steps, and what happens between them.

    window      gradient_accumulation_steps micro-batches of one epoch (the last of an epoch may be shorter)
    step        every batch's loss sum / count of the window, backward; finite? clip, optimizer; one log row
    boundary    evaluation and questions when due, then a save when due or asked for, then a stop if asked for

A checkpoint is the state at a boundary. One made before an evaluation that is due there says so (`pending`),
and the run that resumes it evaluates first: logs come out the same however often a run is stopped.

A step waits for the device once: loss, metrics and gradient norm are fetched together before the weights
change. Left out: more than one process. Which batches, which model: the caller's; which loss: the task's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from pyft.errors import DataError, Interrupted, NumericsError, memory_errors
from pyft.run.faults import Faults
from pyft.run.resume import Plan
from pyft.trainer.console import Console
from pyft.trainer.evaluate import EvaluationStopped, evaluating, measure
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.questions import Generate, Question, ask
from pyft.trainer.record import Boundary, LoadWeights, Progress, RunRecord, SaveWeights, TrainResult
from pyft.trainer.rng import seed_everything
from pyft.trainer.schedule import learning_rate_at
from pyft.trainer.settings import TrainSettings
from pyft.trainer.signals import SignalWatch
from pyft.trainer.totals import Totals, add_metrics
from pyft.trainer.trackers import Trackers

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch
    from pyft.tasks.task import Task
    from pyft.trainer.batches import Batches

MAX_SKIPPED_IN_A_ROW = 3


class Trainer:
    """One run (or one stage of one) in one folder."""

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        train: Batches,
        settings: TrainSettings,
        plan: Plan,
        folder: Path,
        stage: str,
        save_weights: SaveWeights,
        load_weights: LoadWeights,
        validation: Batches | None = None,
        questions: Sequence[Question] = (),
        generate: Generate | None = None,
        save_result: SaveWeights | None = None,
        memory_fn: Callable[[], int] = lambda: 0,
        trackers: Sequence[str] = (),
        signals: SignalWatch | None = None,
        console: Console | None = None,
    ):
        """Take everything a run is made of; nothing is touched before `run`.

        What requires a gradient is trained. `folder` is the run's own, and the caller holds its lock
        (`claim_folder`). `save_weights` and `load_weights` are for checkpoints; `save_result` writes the
        files of the finished run, which come into `folder` at the end. `memory_fn` returns the peak in bytes.
        """
        if train.num_batches < 1:
            raise DataError("the training data make no batch (data.train): give at least one row to learn")
        if questions and generate is None:
            raise ValueError("questions need a generate function")
        self._model, self._task, self._settings, self._plan = model, task, settings, plan
        self._train, self._validation = train, validation
        self._questions, self._generate = questions, generate
        self._folder, self._stage, self._memory_fn = folder, stage, memory_fn
        self._save_weights, self._load_weights, self._save_result = save_weights, load_weights, save_result
        self._signals = signals or SignalWatch()
        self._console = console or Console(logging_steps=settings.logging_steps)
        self._trackers = Trackers(trackers, self._console.note)
        self._faults = Faults()
        self._total, self._progress = plan.total_steps, Progress()

    def run(self) -> TrainResult:
        """Train to the end.

        Interrupted: a signal asked to stop, and everything is saved. NumericsError: three steps in a row were
        not finite; the weights are those from before. DiskError: what was saved before is whole. OutOfMemory
        says what was asked for, ConfigError that the checkpoint is of other parameters.
        """
        for message in self._plan.messages:
            self._console.note(message)
        if (ended := self._plan.finished) is not None:
            return self._result(ended, already_finished=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals)
            self._record = RunRecord(
                self._folder, self._stage, self._plan, self._settings.save_total_limit, self._console.note
            )
            stack.callback(self._record.close)
            stack.callback(self._trackers.close)
            stack.callback(self._console.close)
            with memory_errors(lambda: f"{self._stage}, step {self._progress.step + 1}"):
                return self._run()

    def _run(self) -> TrainResult:
        seed_everything(self._settings.seed)
        self._model.train()
        self._parameters = TrainedParameters(self._model, self._settings)
        self._progress, is_pending = self._record.begin(self._parameters, self._load_weights)
        progress = self._progress
        self._trackers.open(self._folder, self._stage, self._plan.identity, progress.step + 1)
        self._console.start(self._stage, progress.step, self._total)
        if is_pending:
            self._boundary()
        while progress.step < self._total:
            self._step()
            self._boundary()
        self._record.finish(progress, self._parameters, self._save_result)
        return self._result(asdict(progress))

    def _step(self) -> None:
        """Learn from one window of micro-batches, and write its row."""
        started = time.perf_counter()
        progress, step = self._progress, self._progress.step + 1
        window = self._next_window()
        num_targets = sum(batch.num_targets for batch in window)
        rate = learning_rate_at(self._settings, step, self._total)
        metrics, gradient_norm = self._backward(window, step)
        loss, norm = metrics.pop("loss"), metrics.pop("grad_norm")
        was_run = gradient_norm is not None
        if is_learned := was_run and math.isfinite(loss) and math.isfinite(norm):
            self._parameters.step(rate, gradient_norm, self._settings.max_grad_norm)
            progress.num_skipped_in_a_row, progress.last_loss = 0, loss
            progress.num_target_tokens += num_targets
        else:
            self._parameters.drop_gradients()
            progress.num_skipped_steps += 1
            progress.num_skipped_in_a_row += was_run
            why = f"loss {loss}, gradient norm {norm}" if was_run else "0 trained tokens in its batches"
            self._console.note(
                f"warning: step {step} is skipped: {why} ({progress.num_skipped_steps} so far)"
            )
        progress.step = step
        num_tokens = sum(batch.num_tokens for batch in window)
        progress.num_tokens += num_tokens
        row = {
            "stage": self._stage,
            "step": step,
            "epoch": self._epochs(),
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": num_tokens / (time.perf_counter() - started),
            "num_tokens": num_tokens,
            "num_target_tokens": num_targets,
            "peak_memory_bytes": self._memory_fn(),
        }
        row = add_metrics(row, metrics)
        self._log(row if is_learned else {**row, "skipped": True}, self._console.step)
        if progress.num_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NumericsError(
                f"loss or gradients not finite {MAX_SKIPPED_IN_A_ROW} steps in a row ({self._stage}, step "
                f"{step}): the weights are as before; lower train.learning_rate, or set model.dtype: float32"
            )

    def _next_window(self) -> list[Batch]:
        progress, num_batches = self._progress, self._train.num_batches
        end = min(progress.batch + self._settings.gradient_accumulation_steps, num_batches)
        window = [self._train.batch(progress.epoch, index) for index in range(progress.batch, end)]
        progress.epoch, progress.batch = (
            (progress.epoch, end) if end < num_batches else (progress.epoch + 1, 0)
        )
        return window

    def _backward(self, window: Sequence[Batch], step: int) -> tuple[dict[str, float | None], Tensor | None]:
        """Accumulate the window's gradients; return the means and the norm, and the norm on the device."""
        if self._faults.strikes("oom", step):
            raise torch.OutOfMemoryError("out of memory, injected (PYFT_FAULT). Tried to allocate 1.00 GiB")
        counts, totals = [self._task.count(batch) for batch in window], Totals()
        for batch, count in zip(window, counts, strict=True):
            if count == 0:
                continue  # its loss is 0 and so is its gradient
            loss = self._task.objective(self._model, batch)
            (loss.sum / sum(counts)).backward()
            totals.add(loss)
        if totals.counts["loss"] != sum(counts):
            raise RuntimeError(
                f"the objective summed over {totals.counts['loss']} targets, the batches say {sum(counts)}"
            )
        if not any(counts):
            return {"loss": None, "grad_norm": None}, None
        if self._faults.strikes("nan_grad", step):
            self._parameters.gradients()[0].fill_(math.nan)
        norm = self._parameters.gradient_norm()
        return totals.fetch(grad_norm=norm), norm

    def _boundary(self) -> None:
        """Evaluate, save and stop, each when due. Signals count here, and within the evaluation."""
        step, signals, save_every = self._progress.step, self._signals, self._settings.save_steps
        is_due = self._evaluation_due()
        is_saving = step > 0 and (step == self._total or (save_every is not None and step % save_every == 0))
        if not (is_due or is_saving or signals.wants_something()):
            return
        boundary = self._record.boundary(pending=is_due)
        if is_due:
            try:
                self._evaluate(boundary)
            except EvaluationStopped:
                self._record.cut_back(boundary)
                self._save_and_stop(boundary)
            boundary = self._record.after_evaluation(boundary)
        if signals.stop_requested():
            self._save_and_stop(boundary)
        if signals.take_save_request() or is_saving:
            self._save(boundary)

    def _evaluation_due(self) -> bool:
        step, every = self._progress.step, self._settings.eval_steps
        if step == 0:
            return bool(self._questions)
        return step == self._total or (every is not None and step % every == 0)

    def _evaluate(self, boundary: Boundary) -> None:
        def poll() -> None:
            if self._signals.stop_requested():
                raise EvaluationStopped
            if self._signals.take_save_request():
                self._save(boundary)

        step = self._progress.step
        poll()
        with evaluating(self._model):
            if self._validation is not None and step > 0:
                facts = {"stage": self._stage, "step": step, "epoch": self._epochs()}
                row = facts | measure(self._task, self._model, self._validation, poll)
                self._progress.eval_loss = row["eval_loss"] if math.isfinite(row["eval_loss"]) else None
                self._log(row, self._console.evaluation)
            when = "before" if step == 0 else "after" if step == self._total else "during"
            facts = {"stage": self._stage, "step": step, "when": when}
            for answer in ask(self._questions, self._generate, poll, facts):
                self._record.write_sample(answer)
                self._console.answer(answer)

    def _save(self, boundary: Boundary) -> Path:
        return self._record.save(boundary, self._progress, self._parameters, self._save_weights)

    def _save_and_stop(self, boundary: Boundary) -> NoReturn:
        saved = self._save(boundary)
        self._console.note(f"stopped by a signal, saved as {saved}: the same command continues from there")
        raise Interrupted(self._signals.stop_signal)

    def _log(self, row: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        self._record.write_row(row)
        self._trackers.log(row)
        show(row)

    def _result(self, progress: dict[str, Any], *, already_finished: bool = False) -> TrainResult:
        counts = {key: progress[key] for key in ("step", "num_skipped_steps", "last_loss", "eval_loss")}
        return TrainResult(total_steps=self._total, already_finished=already_finished, **counts)

    def _epochs(self) -> float:
        return round(self._progress.epoch + self._progress.batch / self._train.num_batches, 6)
