"""Placeholders for spelled control tokens, and frames that contents are put into."""

from __future__ import annotations

import json
import random
import re

from pyft.data.chat.rendering import (
    Frame,
    Rendered,
    as_dict,
    hold_back,
    placeholders,
    put_back,
    unused_characters,
)
from pyft.data.rows.row import Message

CONTROLS = re.compile(r"<\|end\|>|<e>")


def test_nothing_is_held_back_where_nothing_is_spelled():
    messages = [Message("user", "a < b |> c")]
    tools = [{"a": 1}]
    assert hold_back(messages, tools, CONTROLS, CONTROLS) == (messages, tools, {})


def test_what_is_held_back_comes_back_as_literals():
    tool_call = {"function": {"name": "f<e>", "arguments": {"<e>": ["<|end|>", 3, None, True]}}}
    message = Message("assistant", "x<|end|>y<e>", False, (tool_call,), "n<e>", "id<e>", "why<|end|>")
    (held,), held_tools, spellings = hold_back([message], [{"<e>": "é"}], CONTROLS, CONTROLS)
    written = json.dumps([as_dict(held), held_tools], ensure_ascii=False)
    assert not CONTROLS.search(written)
    assert (held.role, held.trained) == ("assistant", False)
    back = put_back(written, [], [], spellings)
    assert json.loads(back.text) == [as_dict(message), [{"<e>": "é"}]]
    assert [back.text[a:b] for a, b in back.literals] == CONTROLS.findall(back.text)
    assert len(back.literals) == 9


def test_spans_and_ends_move_along():
    first, second = placeholders(2)
    text = f"a{first}b{second}{first}c"
    back = put_back(
        text, [(0, 2), (2, 5), (5, 6), (1, 1)], [1, 2, None, 6], {first: "<|end|>", second: "<e>"}
    )
    assert back.text == "a<|end|>b<e><|end|>c"
    assert [back.text[a:b] for a, b in back.spans] == ["a<|end|>", "b<e><|end|>", "c", ""]
    assert [end if end is None else back.text[:end] for end in back.prompt_ends] == [
        "a",
        "a<|end|>",
        None,
        back.text,
    ]


def test_placeholders_that_occur_are_not_used():
    first, second, third = placeholders(3)
    unused = unused_characters([f"a{first}", second])
    assert next(unused) == third
    (held,), _, spellings = hold_back([Message("user", f"{first}<e>")], [], CONTROLS, CONTROLS)
    assert list(spellings) == [second] and held.content == first + second
    assert put_back(held.content, [], [], spellings).text == f"{first}<e>"


def test_a_message_is_written_with_what_it_has():
    assert as_dict(Message("user", "")) == {"role": "user", "content": ""}
    full = as_dict(Message("tool", "c", True, ({"a": 1},), "n", "i", ""))
    assert full == {
        "role": "tool",
        "content": "c",
        "tool_calls": [{"a": 1}],
        "name": "n",
        "tool_call_id": "i",
        "reasoning_content": "",
    }


def test_a_frame_is_filled_as_the_text_is_written():
    rng = random.Random(7)
    for _ in range(200):
        number = rng.randint(0, 4)
        pieces = ["".join(rng.choices("ab\n", k=rng.randint(0, 3))) for _ in range(number + 1)]
        contents = ["".join(rng.choices(["x", "é", "<e>", "<|end|>", ""], k=3)) for _ in range(number)]
        keys = placeholders(number)

        def write(parts: list[str], pieces: list[str] = pieces) -> str:
            return "".join(p + c for p, c in zip(pieces, [*parts, ""], strict=True))

        text = write(keys)
        spans = sorted(tuple(sorted(rng.choices(range(len(text) + 1), k=2))) for _ in range(2))
        filled = Frame.cut(text, spans, number).fill(contents, CONTROLS)
        whole = write(contents)
        # The same, one character at a time.
        lengths = [len(dict(zip(keys, contents, strict=True)).get(c, c)) for c in text]
        expected = tuple((sum(lengths[:a]), sum(lengths[:b])) for a, b in spans)
        assert (filled.text, filled.spans) == (whole, expected)
        assert filled.prompt_ends == tuple(start for start, _ in expected)
        assert [whole[a:b] for a, b in filled.literals] == [m for c in contents for m in CONTROLS.findall(c)]
        assert filled == Rendered(whole, expected, filled.literals, filled.prompt_ends)


def test_no_frame_where_a_content_is_missing_twice_there_or_out_of_order():
    first, second = placeholders(2)
    assert Frame.cut(f"a{first}b{second}", [], 2) is not None
    for text in (f"a{first}", f"{first}{first}{second}", f"{second}{first}", "a"):
        assert Frame.cut(text, [], 2) is None
