from __future__ import annotations

import io
import re

import pytest
from toy import toy_run

from pyft.trainer.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def row(step, loss=2.5):
    return {"step": step, "loss": loss, "learning_rate": 1e-4, "tokens_per_second": 1234.5}


def shown_steps(text):
    return [int(number) for number in re.findall(r"^step (\d+)/", text, re.MULTILINE)]


@pytest.mark.parametrize(
    ("logging_steps", "total", "shown"),
    [(1, 3, [1, 2, 3]), (10, 13, [1, 10, 13]), (1000, 60, [1, 25, 50, 60]), (1000, 7, [1, 7])],
)
def test_lines_where_there_is_no_terminal(logging_steps, total, shown):
    out = io.StringIO()
    console = Console(logging_steps=logging_steps, out=out)
    console.start("sft", 0, total)
    for step in range(1, total + 1):
        console.step(row(step))
    console.close()
    text = out.getvalue()
    assert shown_steps(text) == shown
    assert re.fullmatch(
        r"step 1/\d+  loss 2\.5000  learning rate 1\.00e-04  1234 tokens/s  0:00 left\n",
        text[: text.index("\n") + 1],
    )


def test_no_control_characters_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    console = Console(out=out)
    console.answer(
        {
            "when": "after",
            "step": 3,
            "prompt": "世界?\n",
            "completion": "a\rb\x1b[31mc\x85d\u2028e\n\x00",
            "stopped": False,
        }
    )
    toy_run(tmp_path, console=console)
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", text)
    assert "asked: 世界?\\n" in text and r"answer: a\rb\x1b[31mc\x85d\u2028e\n\x00 [no end]" in text


def test_bar_on_a_terminal():
    out = Terminal()
    console = Console(out=out)
    console.start("pretrain", 2, 4)
    console.step(row(3))
    console.note("a line")
    console.step(row(4, None))
    console.close()
    text = out.getvalue()
    assert "\r" in text and "pretrain" in text and "4/4" in text
    assert "loss skipped, 1234 tokens/s" in text and "a line\n" in text


def test_output_that_cannot_spell_chinese():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(out=out).note("珠")
    assert raw.getvalue() == b"\\u73e0\n"


def test_a_run_prints_losses_answers_and_validation(tmp_path, capsys):
    toy_run(tmp_path)
    text = capsys.readouterr().out
    for part in (
        "step 3/8  validation loss",
        "before training  asked: one?",
        "step 3  asked: two?",
        "after training",
    ):
        assert part in text
    assert shown_steps(text).count(8) == 2  # the step and its evaluation


def test_left_is_counted_from_this_process(monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    out = io.StringIO()
    console = Console(out=out)
    console.start("sft", 100, 500)
    console.step(row(101))
    assert "1:06:30 left" in out.getvalue()
