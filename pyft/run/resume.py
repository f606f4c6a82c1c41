"""What a run does first: start fresh, continue from a checkpoint, or see that it has ended already.

`plan_run` only reads, so it can be asked before any weight is loaded; it answers with what to do and with the
sentences to show. Going on demands that everything the numbers depend on is as it was (the identity), field
by field; what may change between the two is not part of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyft.errors import ConfigError
from pyft.run import layout
from pyft.run.checkpoint import problems
from pyft.run.layout import list_checkpoints


@dataclass(frozen=True)
class Plan:
    """What to do. At most one of `checkpoint` and `finished` is set; with neither the run starts fresh.

    `state` is the checkpoint's trainer_state.json, `finished` the contents of the ended run's finished.json,
    `identity` what the run writes into its own, `messages` what to tell the user.
    """

    identity: dict[str, Any]
    total_steps: int
    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] | None = None
    messages: tuple[str, ...] = ()


def plan_run(
    folder: Path,
    resume: str | Path | None,
    total_steps: int,
    identity: dict[str, Any],
) -> Plan:
    """Decide how a run begins. Reads only.

    Args:
        folder: the run's own folder.
        resume: "auto" (the newest whole checkpoint, or a fresh start), a checkpoint or a folder of them, or
            None for a fresh start.
        total_steps: optimizer steps of the whole run.
        identity: what its numbers depend on (settings, base model, data, template, precision, ...), JSON
            values, nested or not; compared field by field.

    Returns:
        The plan.

    Raises:
        ConfigError: a run is there and was not to be resumed; there is nothing to resume; no checkpoint is
            whole, or one lacks its optimizer; the identity differs.
    """
    # As it reads back from a file: tuples become lists, numbers keep their value.
    whole = json.loads(json.dumps(identity))
    if resume is None:
        _refuse_existing(folder)
        return Plan(whole, total_steps)
    finished = _read_finished(folder)
    if finished is not None:
        _compare(finished["identity"], whole, folder / layout.FINISHED)
        if finished["step"] >= total_steps:
            said = f"the run in {folder} is finished ({finished['step']} steps): nothing to do"
            return Plan(whole, total_steps, finished=finished, messages=(said,))
    if resume == "auto":
        checkpoint, messages = _newest_whole(folder)
        if checkpoint is None:
            if finished is not None:
                raise ConfigError(
                    f"a run of {finished['step']} steps ended there, without a checkpoint to continue from "
                    f"(train.output_dir {folder}): choose another folder"
                )
            return Plan(whole, total_steps, messages=(f"no checkpoint in {folder}: starting fresh",))
    else:
        checkpoint, messages = _explicit(Path(resume))
        if checkpoint.resolve().parent != folder.resolve():
            _refuse_existing(folder)
    return _go_on(checkpoint, messages, whole, total_steps)


def _read_finished(folder: Path) -> dict[str, Any] | None:
    """Read the finished.json of a run's folder, None where it is absent; another content is a ConfigError."""
    path = folder / layout.FINISHED
    try:
        finished = json.loads(path.read_bytes())
        return {**finished, "step": int(finished["step"]), "identity": dict(finished["identity"])}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"is not what a finished run writes ({path}): remove it, or choose another folder"
        ) from error


def _go_on(checkpoint: Path, messages: list[str], identity: dict[str, Any], total_steps: int) -> Plan:
    state = json.loads((checkpoint / layout.TRAINER_STATE).read_bytes())
    _compare(state["identity"], identity, checkpoint)
    if state["step"] > total_steps:
        raise ConfigError(
            f"{checkpoint} is at step {state['step']}, past the {total_steps} steps here "
            "(train.max_steps, train.num_train_epochs): ask for more, or choose another train.output_dir"
        )
    messages = [*messages, f"resuming from {checkpoint} (step {state['step']} of {total_steps})"]
    if state["total_steps"] != total_steps:
        messages.append(
            f"the run had {state['total_steps']} steps and has {total_steps} now: the learning "
            "rate follows the new number"
        )
    return Plan(identity, total_steps, checkpoint, state, messages=tuple(messages))


def _newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    messages = []
    candidates = list_checkpoints(folder)
    for _, checkpoint in reversed(candidates):
        found = problems(checkpoint)
        if not found:
            return checkpoint, messages
        _refuse_lost_optimizer(checkpoint, found)
        messages.append(f"warning: {checkpoint} is damaged or incomplete ({'; '.join(found)}): not used")
    if candidates:
        raise ConfigError(
            [message.removeprefix("warning: ") for message in messages]
            + [
                f"no checkpoint is whole (train.output_dir {folder}): remove them to start fresh, or choose "
                "another folder"
            ]
        )
    return None, messages


def _explicit(path: Path) -> tuple[Path, list[str]]:
    where = f"(train.resume_from_checkpoint {path})"
    if not path.is_dir():
        raise ConfigError(f"no such checkpoint {where}: give a checkpoint's folder, `auto` or null")
    if not (path / layout.MANIFEST).exists() and list_checkpoints(path):
        checkpoint, messages = _newest_whole(path)
        assert checkpoint is not None  # there are some, so one is whole or an error was raised
        return checkpoint, messages
    found = problems(path)
    if found:
        _refuse_lost_optimizer(path, found)
        raise ConfigError(f"no complete checkpoint {where}: {'; '.join(found)}")
    return path, []


def _refuse_lost_optimizer(checkpoint: Path, found: list[str]) -> None:
    """Refuse a lost optimizer file: somebody removed it, and has to be told, not given an older step."""
    if f"missing: {layout.OPTIMIZER}" in found:
        raise ConfigError(f"{layout.OPTIMIZER} is missing ({checkpoint}): put it back, or remove that folder")


def _refuse_existing(folder: Path) -> None:
    log = folder / layout.LOG
    if (
        list_checkpoints(folder)
        or (folder / layout.FINISHED).exists()
        or (log.is_file() and log.stat().st_size > 0)
    ):
        raise ConfigError(
            f"a run is there already (train.output_dir {folder}): choose another folder, or continue it "
            "(train.resume_from_checkpoint: auto)"
        )


def _compare(old: dict[str, Any], new: dict[str, Any], where: Path) -> None:
    old, new = _flat(old), _flat(new)
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if differing:
        raise ConfigError(
            [
                f"{name} was {_shown(old, name)} and is {_shown(new, name)} ({where}): a run resumes as it "
                "was; set it back, or choose another train.output_dir"
                for name in differing
            ]
        )


def _shown(values: dict[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
