"""What is learned and what is only read, told apart on a terminal and off it."""

from __future__ import annotations

from pyft.data.encode import Sample, encode_conversation
from pyft.data.formats import Message
from pyft.data.preview import format_sample, spelled_text, split_by_training, wants_colour
from pyft.data.templates import get_template


def encode(tokenizer, question: str, answer: str) -> Sample:
    talk = [Message("user", question), Message("assistant", answer)]
    return encode_conversation(tokenizer, get_template("chatml", tokenizer), talk, "data.jsonl:7")


def test_marks_off_a_terminal(bpe):
    sample = encode(bpe, "who \x1b[31m\r\u202e 👩‍👧", "世界 river")
    heading, *text = format_sample(sample, bpe, colour=False).split("\n")
    assert heading == f"data.jsonl:7: {len(sample.input_ids)} tokens, {sample.num_trained} trained (in ⟦ ⟧)"
    assert text == [
        "<|im_start|>user",
        "who \\x1b[31m\\r\\u202e 👩‍👧<|im_end|>",
        "<|im_start|>assistant",
        "⟦世界 river<|im_end|>⟧",
        "",
    ]


def test_colours_on_a_terminal(bpe):
    coloured = format_sample(encode(bpe, "who \x1b[31m", "世界 river"), bpe, colour=True)
    assert "\x1b[32m世界 river<|im_end|>\x1b[0m" in coloured
    assert "\x1b[2m<|im_start|>user\nwho \\x1b[31m<|im_end|>" in coloured
    assert "⟦" not in coloured


def test_stretches_are_the_text(bpe):
    sample = encode(bpe, "who", "世界 😀")
    parts = list(split_by_training(sample, bpe))
    assert "".join(text for _, text in parts) == sample.text == spelled_text(sample, bpe)
    assert [text for trained, text in parts if trained] == ["世界 😀<|im_end|>"]


def test_a_long_sample_says_that_it_is_cut(bpe):
    shown = format_sample(encode(bpe, "q", "river " * 900), bpe, colour=False)
    assert "(the first 2000 of 5462 characters)" in shown
    assert len(shown) < 2200


def test_colour_only_where_it_can_be_seen(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    assert not wants_colour()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour()
