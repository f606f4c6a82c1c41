"""Trackers (TensorBoard, Weights & Biases) get each row; one that is down is a warning, not an end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

CLOSE_SECONDS = 30.0


class _Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, run: str, config: dict[str, Any], first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: events past it are of a course that a resumed run leaves.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, run: str, config: dict[str, Any], first_step: int):
        import wandb

        offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
        if not offline and not wandb.api.api_key:
            # wandb.init would ask for the key on a terminal and wait for it.
            raise RuntimeError("not logged in: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pyft"),
            name=run,
            dir=str(folder),
            config=config,
            settings=wandb.Settings(init_timeout=CLOSE_SECONDS, silent=True),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[..., _Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


class Trackers:
    """The trackers that work. Each that fails, now or later, is dropped with one warning."""

    def __init__(self, names: Sequence[str], warn: Callable[[str], None]):
        self._names = names
        self._warn = warn
        self._open: dict[str, _Tracker] = {}

    def open(self, folder: Path, run: str, config: dict[str, Any], first_step: int) -> None:
        """Open them below the run's folder; `first_step` is more than 1 in a resumed run."""
        for name in self._names:
            self._try(
                name,
                lambda name=name: self._open.update({name: _KINDS[name](folder, run, config, first_step)}),
            )

    def log(self, row: dict[str, Any]) -> None:
        """Pass on the numbers of a log row."""
        values = {key: value for key, value in row.items() if _is_number(value) and key != "step"}
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(row["step"], values))

    def close(self) -> None:
        """End them; one that still waits for its server is given half a minute."""
        for name, tracker in list(self._open.items()):
            thread = threading.Thread(target=self._try, args=(name, tracker.close), daemon=True)
            thread.start()
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                self._warn(f"warning: {name} did not finish within {CLOSE_SECONDS:.0f} seconds: left behind")
        self._open.clear()

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._open.pop(name, None)
            self._warn(f"warning: {name} is not used (train.report_to): {error}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
