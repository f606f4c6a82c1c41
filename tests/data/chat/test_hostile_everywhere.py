"""Hostile templates wherever one is rendered: for training in this process and in workers, for chat, for a
question during training, for `python -m pyft.data templates`."""

from __future__ import annotations

import json
import re

import pytest
from hostile_templates import HOSTILE

from pyft.chat import Chat
from pyft.data.chat import sandbox_limits
from pyft.data.chat.bind import get_template
from pyft.data.prepare import prepare
from pyft.data.prepared.pool import WorkerPool
from pyft.data.prepared.source import SourceReader
from pyft.data.reading.chunks import RawChunk
from pyft.data.rows.formats import RowFormat
from pyft.data.show.templates import show_template
from pyft.errors import ConfigError
from pyft.tasks.sft import Sft

GOOD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_TEMPLATES = [pair for pair in HOSTILE if pair[1].startswith(("not valid Jinja", "longer than", "center"))]
RENDERED = [pair for pair in HOSTILE if pair not in NO_TEMPLATES]
ATTACKS = "".join(
    f"{{% {'elif' if number else 'if'} messages[0].content == 'attack {number}' %}}{source}"
    for number, (source, _) in enumerate(RENDERED)
)
SOURCE = "{% set x = 'x' %}" + ATTACKS + "{% endif %}" + GOOD
"""One template with all of them; the question says which one is meant, so that binding meets none."""


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 500_000)
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 600.0)


@pytest.fixture
def stage(make_recipe, bpe_folder, tmp_path):
    """A row for each attack, and one before and after them that is none; nothing is left to workers."""
    path = tmp_path / "hostile.jsonl"
    path.write_text("".join(json.dumps(row(f"attack {i}")) + "\n" for i in range(-1, len(RENDERED) + 1)))
    data = {"val_size": 0, "num_workers": 0, "on_bad_record": "skip", "cache_dir": str(tmp_path / "cache")}
    return make_recipe(path, bpe_folder, data=data).stages[0]


@pytest.fixture
def hostile(bpe, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(SOURCE, encoding="utf-8")
    return get_template(str(path), bpe)


def row(question: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]}


def test_workers_tell_each_row_why(stage, hostile, bpe):
    pool = WorkerPool(SourceReader(stage, bpe, hostile, lambda: None).encoder, 1, lambda: None)
    seen: set[str] = set()
    try:
        for number, (_, fragment) in enumerate(RENDERED):
            if fragment == "loop rounds and calls" and fragment in seen:
                continue  # two million steps take seconds each time
            seen.add(fragment)
            line = json.dumps(row(f"attack {number}")).encode()
            pool.send(RawChunk("a.jsonl", [line], [1]), RowFormat("messages", True, {}, None))
            (message,) = pool.receive().counts.errors
            assert message.startswith("a.jsonl:1") and "mine.jinja" in message
            assert re.search(fragment.strip("^$"), message)
    finally:
        pool.close()


def test_preparing_leaves_each_out_and_goes_on(stage, hostile, bpe):
    ledger = prepare(stage, bpe, hostile).ledger
    assert ledger["dropped"]["bad_record"] == len(RENDERED)
    assert ledger["train"]["rows"] == 2


OPTIONS = {"system": None, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 1}


@pytest.mark.parametrize("number", range(len(RENDERED)))
def test_chat_and_questions_refuse_them(hostile, bpe, number):
    fragment = RENDERED[number][1].strip("^$")
    prompt = f"attack {number}"
    for ask in (
        lambda: Sft().prompt_ids(prompt, None, bpe, hostile),
        lambda: Chat(None, bpe, hostile, **OPTIONS).answer(prompt, print),
    ):
        with pytest.raises(ConfigError, match=f"refuses the conversation: .*{fragment}"):
            ask()


@pytest.mark.parametrize(("source", "fragment"), NO_TEMPLATES)
def test_what_is_no_template_is_never_bound(tmp_path, bpe, source, fragment):
    path = tmp_path / "mine.jinja"
    path.write_text(source, encoding="utf-8")
    for bind in (lambda: get_template(str(path), bpe), lambda: show_template(str(path), colour=False)):
        with pytest.raises(ConfigError, match=fragment):
            bind()
