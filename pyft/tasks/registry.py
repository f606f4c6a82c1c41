"""The tasks by the mode that a recipe names."""

from __future__ import annotations

from pyft.config.modes import register_mode
from pyft.config.schema import Stage
from pyft.tasks.pretrain import Pretrain
from pyft.tasks.sft import Sft
from pyft.tasks.task import Task

TASKS: dict[str, type[Task]] = {}


def register_task(task: type[Task]) -> None:
    """Let recipes name the mode of a task."""
    register_mode(task.mode)
    TASKS[task.mode.name] = task


def task_of(stage: Stage) -> Task:
    """Make the task of a stage's mode."""
    return TASKS[stage.mode].from_stage(stage)


register_task(Pretrain)
register_task(Sft)
