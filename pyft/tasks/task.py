"""What every mode answers for, so that loop and stages know none of them by name.

data   -> mode         what its rows are, whether a chat template renders them
batch  -> objective    Loss(sum, count, metrics): added up over batches, each divided once by its count
asking -> prompt_ids, stop_ids
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from pyft.config.modes import Mode
    from pyft.config.schema import Stage
    from pyft.data.batches.collate import Batch
    from pyft.data.chat.chat_template import ChatTemplate


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, summed and not divided.

    `sum` is a scalar with its graph, `count` what it is of: targets, or pairs. `metrics` has further sums by
    name, each with its count; those on a device are left there, as every step fetches once.
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, tuple[Tensor | float, int]] = field(default_factory=dict)


class Task(ABC):
    """A mode of training; by default one whose questions are asked in chat."""

    mode: ClassVar[Mode]

    @classmethod
    def from_stage(cls, stage: Stage) -> Task:
        """Make the task of a stage; one with settings of its own takes them from there."""
        return cls()

    @abstractmethod
    def objective(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, which is on the CPU; the sums are on the model's device."""

    def count(self, batch: Batch) -> int:
        """Return the `count` that the batch's loss will have; a batch with 0 is left out."""
        return batch.num_targets

    def evaluation_metrics(self, loss: float) -> dict[str, float]:
        """Return what an evaluation says beside its mean loss and the objective's metrics."""
        return {}

    def prompt_ids(
        self, prompt: str, system: str | None, tokenizer: Any, template: ChatTemplate | None
    ) -> list[int]:
        """Return the ids that ask the model, as chat would send them."""
        messages = [{"role": "system", "content": system}] if system else []
        return template.encode_prompt(tokenizer, [*messages, {"role": "user", "content": prompt}])

    def stop_ids(self, tokenizer: Any, template: ChatTemplate | None) -> list[int]:
        """Return the tokens that end an answer."""
        return template.stop_token_ids(tokenizer)
