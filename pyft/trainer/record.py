"""The files of a run in its folder: logs, checkpoints, the end. The loop says when, this says how.

Progress    where the run is and what it counted; goes into trainer_state.json as it is
Boundary    what a checkpoint needs from the moment a step ended, whatever an evaluation does after it
RunRecord   begins (fresh or from a checkpoint), writes rows, saves, ends
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pyft.disk import replace_file, write_new_file
from pyft.run import checkpoint as checkpoints
from pyft.run import layout
from pyft.run.faults import Faults
from pyft.run.log import JsonLog, read_rows
from pyft.run.resume import Plan
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.plot import plot_loss
from pyft.trainer.rng import rng_state, same_rng_after, set_rng_state

SaveWeights = Callable[[Path], None]
"""Writes the trained weights into an existing folder, under the same file names each time; nowhere else."""

LoadWeights = Callable[[Path], None]
"""Reads what `SaveWeights` wrote back into the live model, in place: parameters stay the same objects."""


@dataclass
class Progress:
    """Steps done, the batch that comes next, and what was counted on the way."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0
    last_loss: float | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `already_finished`: it had ended before, and nothing was touched."""

    step: int
    total_steps: int
    num_skipped_steps: int
    last_loss: float | None
    eval_loss: float | None
    already_finished: bool = False


@dataclass(frozen=True)
class Boundary:
    """The generators and the logs' lengths as a step left them; `pending`: an evaluation is due there."""

    rng: dict[str, Tensor]
    log_bytes: dict[str, int]
    pending: bool


class RunRecord:
    """The files of one run."""

    def __init__(
        self, folder: Path, stage: str, plan: Plan, save_total_limit: int, note: Callable[[str], None]
    ):
        """Open the logs; `note` shows a line."""
        self._folder, self._stage, self._plan, self._note = folder, stage, plan, note
        self._limit = save_total_limit
        self._faults = Faults()
        self._last_saved: Path | None = None
        self._rows = JsonLog(folder / layout.LOG)
        self._samples = JsonLog(folder / layout.SAMPLES)
        self._logs = {layout.LOG: self._rows, layout.SAMPLES: self._samples}

    def begin(self, parameters: TrainedParameters, load_weights: LoadWeights) -> tuple[Progress, bool]:
        """Make the folder ready, and restore what the plan's checkpoint has.

        Also return whether an evaluation is due before the next step.
        """
        checkpoints.remove_leftovers(self._folder)
        (self._folder / layout.FINISHED).unlink(missing_ok=True)
        source, state = self._plan.checkpoint, self._plan.state
        if source is None:
            for log in self._logs.values():
                log.cut(0)
            return Progress(), True
        if source.resolve().parent == self._folder.resolve():
            self._last_saved = source
            for aside in checkpoints.supersede(self._folder, state["step"]):
                self._note(f"a later checkpoint is set aside as {aside.name}: nothing uses it any more")
            for name, log in self._logs.items():
                if not log.cut(state["log_bytes"][name]):
                    self._note(f"warning: {name} has changed since the checkpoint was saved: rows are lost")
        load_weights(source)
        parameters.load(source / layout.OPTIMIZER)
        set_rng_state(load_file(source / layout.RNG_STATE))
        return Progress(**state["progress"]), state["pending"]

    def write_row(self, row: dict[str, Any]) -> None:
        """Append to trainer_log.jsonl."""
        self._rows.write(row)

    def write_sample(self, row: dict[str, Any]) -> None:
        """Append to samples.jsonl."""
        self._samples.write(row)

    def boundary(self, *, pending: bool) -> Boundary:
        """Take down what a checkpoint needs of this moment."""
        return Boundary(rng_state(), self._log_bytes(), pending)

    def after_evaluation(self, before: Boundary) -> Boundary:
        """Return the same moment with the rows of its evaluation in the logs."""
        return Boundary(before.rng, self._log_bytes(), pending=False)

    def cut_back(self, boundary: Boundary) -> None:
        """Drop the rows written since."""
        for name, size_bytes in boundary.log_bytes.items():
            self._logs[name].cut(size_bytes)

    def save(
        self,
        boundary: Boundary,
        progress: Progress,
        parameters: TrainedParameters,
        save_weights: SaveWeights,
    ) -> Path:
        """Write checkpoint-<step> and let the oldest go.

        One that this course of the run has at this step already is left as it is: it differs at most in
        being made before the step's evaluation, and a resumption does that again.
        """
        if self._last_saved is not None and layout.checkpoint_step(self._last_saved) == progress.step:
            return self._last_saved
        state = {
            "stage": self._stage,
            "step": progress.step,
            "total_steps": self._plan.total_steps,
            "progress": asdict(progress),
            "pending": boundary.pending,
            "log_bytes": boundary.log_bytes,
            "identity": self._plan.identity,
        }
        for log in self._logs.values():
            log.sync()
        writers = (
            save_weights,
            lambda folder: parameters.save(folder / layout.OPTIMIZER),
            lambda folder: save_file(boundary.rng, folder / layout.RNG_STATE),
            lambda folder: write_new_file(
                folder / layout.TRAINER_STATE, json.dumps(state, indent=1).encode()
            ),
        )
        with same_rng_after():
            self._last_saved = checkpoints.write_checkpoint(
                self._folder, progress.step, writers, needed_bytes=parameters.state_bytes, faults=self._faults
            )
        self._faults.kill("kill_before_rotate", progress.step)
        checkpoints.rotate(self._folder, self._limit, keep=self._plan.checkpoint)
        return self._last_saved

    def finish(
        self, progress: Progress, parameters: TrainedParameters, save_result: SaveWeights | None
    ) -> None:
        """Put the result and the loss curve into the folder, and last the mark that the run has ended.

        If `save_result` fails, the last checkpoint still leads here.
        """
        if save_result is not None:
            checkpoints.publish(self._folder, save_result, needed_bytes=parameters.weight_bytes)
        if problem := plot_loss(self._folder / layout.PLOT, read_rows(self._folder / layout.LOG)):
            self._note(f"warning: {problem}")
        ended = {"stage": self._stage, **asdict(progress), "identity": self._plan.identity}
        replace_file(self._folder / layout.FINISHED, json.dumps(ended, indent=1, ensure_ascii=False).encode())

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()

    def _log_bytes(self) -> dict[str, int]:
        return {name: log.size_bytes for name, log in self._logs.items()}
