"""Hand-written questions that the model is asked before, during and after training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question: its text for people, and the ids that ask it."""

    prompt: str
    input_ids: list[int]


@dataclass(frozen=True)
class Completion:
    """An answer: its text without special tokens, and whether it ended by itself."""

    text: str
    stopped: bool


Generate = Callable[[list[int]], Completion]
"""Answers a prompt's ids. It may look at `SignalWatch.stop_requested` between tokens and give up early."""


def ask(
    questions: Sequence[Question], generate: Generate, poll: Callable[[], None], facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield a row of samples.jsonl for each question, `facts` its first fields.

    `poll` is called before and after each answer, and may raise EvaluationStopped.
    """
    for question in questions:
        poll()
        completion = generate(question.input_ids)
        poll()  # an answer that a signal cut short is no answer
        yield {
            **facts,
            "prompt": question.prompt,
            "completion": completion.text,
            "stopped": completion.stopped,
        }
