"""What a run shows: a progress bar on a terminal, plain lines elsewhere.

Elsewhere (a file, a pipe) nothing but whole lines is written, flushed one by one: no carriage return, no
colour, and control characters in an answer are spelt out.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_STEPS = 25
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Console:
    """Shows the course of one run."""

    def __init__(self, *, logging_steps: int = 1, out: TextIO | None = None):
        """Show on `out`: where there is no bar a line each `logging_steps`, and at least every 25."""
        self._out = sys.stdout if out is None else out
        self._every = min(logging_steps, LINE_EVERY_STEPS)
        self._bar: tqdm | None = None
        self._first = self._total = 0
        self._started = 0.0

    def start(self, stage: str, done: int, total: int) -> None:
        """Begin to count, with some steps done already; the bar is named for the stage."""
        self._first, self._total, self._started = done, total, time.perf_counter()
        if self._out.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=stage,
                unit="step",
                file=self._out,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    def note(self, text: str) -> None:
        """Show a line; on a terminal above the bar."""
        text = "\n".join(_CONTROL.sub(_spelt, line) for line in text.split("\n"))
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            print(text, file=self._out, flush=True)

    def step(self, row: dict[str, Any]) -> None:
        """Show a step from its log row."""
        step = row["step"]
        loss = "skipped" if row["loss"] is None else f"{row['loss']:.4f}"
        speed = f"{row['tokens_per_second']:.0f}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss}, {speed} tokens/s", refresh=False)
            self._bar.update(1)
        elif step % self._every == 0 or step in (self._first + 1, self._total):
            left = (time.perf_counter() - self._started) / (step - self._first) * (self._total - step)
            self.note(
                f"step {step}/{self._total}  loss {loss}  learning rate {row['learning_rate']:.2e}  "
                f"{speed} tokens/s  {_clock(left)} left"
            )

    def evaluation(self, row: dict[str, Any]) -> None:
        """Show an evaluation from its log row: the loss, and every metric beside it."""
        metrics = {
            name.removeprefix("eval_").replace("_", " "): value
            for name, value in row.items()
            if name.startswith("eval_") and isinstance(value, float)
        }
        loss = metrics.pop("loss")
        others = "".join(f"  {name} {value:.4g}" for name, value in metrics.items())
        self.note(f"step {row['step']}/{self._total}  validation loss {loss:.4f}{others}")

    def answer(self, row: dict[str, Any]) -> None:
        """Show a question and its answer from a row of samples.jsonl."""
        moment = {"before": "before training", "after": "after training"}.get(
            row["when"], f"step {row['step']}"
        )
        end = "" if row["stopped"] else " [no end]"
        question, answer = (row[key].replace("\n", "\\n") for key in ("prompt", "completion"))
        self.note(f"{moment}  asked: {question}\n{' ' * len(moment)}  answer: {answer}{end}")

    def close(self) -> None:
        """End the bar, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _spelt(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
