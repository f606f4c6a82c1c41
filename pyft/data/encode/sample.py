"""What encoding gives: samples of ids with labels, and what became of the row they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyft.config.modes import Mode

IGNORED = -100


@dataclass(frozen=True)
class EncodeOptions:
    """How rows become samples; the names and values are those of the recipe's `data:`.

    `overlong` is one of drop, truncate, split (documents only) and error; `train_on` one of assistant, last
    and all. `system` is the system text of rows that have none.
    """

    mode: Mode
    max_length: int | None = None
    overlong: str = "drop"
    train_on: str = "assistant"
    train_on_eot: bool = True
    system: str | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Ids and a label for each (-100: not learned): int32 [tokens], not to be written to."""

    input_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def num_trained(self) -> int:
        """Labels that are learned."""
        return int(np.count_nonzero(self.labels != IGNORED))


@dataclass(frozen=True)
class EncodedRow:
    """What became of one row: its samples, or why there are none, and its counts.

    A row has samples, or `dropped` (a reason of the ledger), or `error` (`what: how to fix it`). Its tokens
    add up: `num_tokens` is the tokens in its samples plus `tokens_cut`.
    """

    samples: tuple[Sample, ...] = ()
    texts: tuple[str, ...] = ()
    """What the ids of each sample spell; empty where the row came as ids."""
    turns_cut: int = 0
    """Turns after the last trained one, which were left out."""
    prompt_differs: bool = False
    """Some prompt of the row, as chat would send it, has other ids than the row begins with."""
    num_tokens: int = 0
    """Tokens encoded for the row."""
    tokens_cut: int = 0
    """Those of them in no sample, because of max_length."""
    dropped: str | None = None
    cut_text: str = ""
    """What cut turns and truncation left out, for the preview."""
    error: str | None = None
    longest: int = 0
    """Tokens of the longest sample, before anything was cut from it."""
    rejected_unused: int = 0
    """Rejected answers, of which nothing is learned here."""
    turns_shortened: int = 0
    """Turns where the template left out the thinking or the speaker's name."""
