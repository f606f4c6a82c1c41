"""Formats of a question and an answer, and preferences in their several spellings."""

from __future__ import annotations

import pytest
from row_files import read

from pyft.data.rows.row import Message


def test_alpaca_joins_instruction_and_input_by_one_newline(write_rows):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Add.", "input": None, "output": "3"},
        {"instruction": "Add.", "output": "3"},
        {"instruction": "", "input": "1 2", "output": "3"},
    ]
    questions = [row.messages[0].content for row in read(write_rows, rows).rows]
    assert questions == ["Add.\n1 2", "Add.", "Add.", "1 2"]


def test_alpaca_nooutput_is_left_out_and_counted(write_rows):
    rows = [{"instruction": "a", "output": "<nooutput>"}, {"instruction": "b", "output": "c"}]
    file = read(write_rows, rows)
    assert (file.left_out, len(file.rows)) == ({"nooutput": 1}, 1)
    assert file.rows[0].messages[0].content == "b"


SYSTEM = Message("system", "Be brief.")


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_prompt(write_rows):
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "q"},
    ]
    rows = [
        {"prompt": "q", "completion": "a", "system": "Be brief."},
        {"prompt": history, "completion": [{"role": "assistant", "content": "a"}], "tools": [TOOL]},
        {"prompt": [{"from": "human", "value": "q"}], "completion": {"from": "gpt", "value": "a"}},
        {"prompt": [*history[:1], history[1] | {"loss": True}, *history[2:]], "completion": "a"},
    ]
    file = read(write_rows, rows)
    assert file.name == "prompt"
    question, answer = Message("user", "q"), Message("assistant", "a")
    greeting = (Message("user", "Hi"), Message("assistant", "Hello.", trained=False))
    assert [row.messages for row in file.rows] == [
        (SYSTEM, question, answer),
        (*greeting, question, answer),
        (question, answer),
        (greeting[0], Message("assistant", "Hello."), question, answer),
    ]
    assert [row.tools for row in file.rows] == [(), (TOOL,), (), ()]


GOOD, BAD = Message("assistant", "good"), Message("assistant", "bad")


QUESTION = Message("user", "q")


PREFERENCES = {
    "prompt": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "prompt as messages": {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": {"role": "assistant", "content": "bad"},
    },
    "prompt repeated": {
        "prompt": "q",
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
    },
    "no prompt": {
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
    },
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "messages": {
        "messages": [{"role": "user", "content": "q"}],
        "chosen": {"role": "assistant", "content": "good"},
        "rejected": "bad",
    },
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_same_preference_in_every_spelling(write_rows, name):
    file = read(write_rows, [PREFERENCES[name]])
    assert file.name == "preference"
    (row,) = file.rows
    assert (row.messages, row.rejected) == ((QUESTION, GOOD), (BAD,))
    assert not file.unused


def test_only_the_answers_of_a_preference_are_learned(write_rows):
    context = (Message("user", "Hi"), Message("assistant", "Hello.", trained=False), QUESTION)
    said = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "q"},
    ]
    history = {"instruction": "q", "history": [["Hi", "Hello."]], "system": "Be brief."}
    spoken = [{"role": turn.role, "content": turn.content} for turn in context]
    rows = [
        {"conversations": said, "chosen": "good", "rejected": "bad", "system": "Be brief."},
        history | {"chosen": "good", "rejected": "bad"},
        {
            "chosen": [
                {"role": "system", "content": "Be brief."},
                *spoken,
                {"role": "assistant", "content": "good"},
            ],
            "rejected": [
                {"role": "system", "content": "Be brief."},
                *spoken,
                {"role": "assistant", "content": "bad"},
            ],
        },
    ]
    for row in read(write_rows, rows).rows:
        assert (row.messages, row.rejected) == ((SYSTEM, *context, GOOD), (BAD,))


def test_answers_beside_an_answered_conversation_are_not_read(write_rows):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    talk = {"conversations": turns, "chosen": "x", "rejected": "y"}
    file = read(write_rows, [talk])
    assert (file.name, file.rows[0].rejected) == ("messages", None)
    assert file.unused == {"chosen": 1, "rejected": 1}
