"""What is learned and what is only read, told apart on a terminal and off it."""

from __future__ import annotations

import numpy as np
from encoded import as_lists

from pyft.config.modes import SFT
from pyft.data.batches.collate import collate
from pyft.data.chat.bind import get_template
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions, Sample
from pyft.data.rows.row import Message, Row
from pyft.data.show.samples import (
    format_pack,
    format_sample,
    samples_of_batch,
    spelled_text,
    split_by_training,
)
from pyft.data.show.terminal import wants_colour


def encode(tokenizer, question: str, answer: str) -> tuple[Sample, str]:
    """The sample, and the text it was made of."""
    talk = (Message("user", question), Message("assistant", answer))
    encoder = RowEncoder(tokenizer, get_template("chatml", tokenizer), EncodeOptions(SFT))
    (row,) = encoder.encode([Row(talk, None)])
    return row.samples[0], row.texts[0]


def make_sample(ids: list[int], labels: list[int]) -> Sample:
    return Sample(np.array(ids, np.int32), np.array(labels, np.int32))


def show(sample: Sample, tokenizer, **options) -> str:
    return format_sample(sample, "data.jsonl:7", tokenizer, **options)


def test_marks_off_a_terminal(bpe):
    sample, _ = encode(bpe, "who \x1b[31m\r\u202e 👩‍👧", "世界 river")
    heading, *text = show(sample, bpe, colour=False).split("\n")
    assert heading == f"data.jsonl:7: {len(sample)} tokens, {sample.num_trained} trained (in ⟦ ⟧)"
    assert text == [
        "<|im_start|>user",
        "who \\x1b[31m\\r\\u202e 👩‍👧<|im_end|>",
        "<|im_start|>assistant",
        "⟦世界 river<|im_end|>⟧",
        "",
    ]


def test_colours_on_a_terminal(bpe):
    coloured = show(encode(bpe, "who \x1b[31m", "世界 river")[0], bpe, colour=True)
    assert "\x1b[32m世界 river<|im_end|>\x1b[0m" in coloured
    assert "\x1b[2m<|im_start|>user\nwho \\x1b[31m<|im_end|>" in coloured
    assert "⟦" not in coloured


def test_stretches_are_the_text(bpe):
    sample, text = encode(bpe, "who", "世界 😀")
    parts = list(split_by_training(sample, bpe))
    assert "".join(part for _, part in parts) == text == spelled_text(sample, bpe)
    assert [part for trained, part in parts if trained] == ["世界 😀<|im_end|>"]


def test_cut_text_is_told_apart_from_both(bpe):
    sample, _ = encode(bpe, "who", "river")
    heading, *text = show(sample, bpe, colour=False, cut_text="and\x1b[2J\nmore").split("\n")
    assert heading.endswith("trained (in ⟦ ⟧), the rest was cut (in ⟪ ⟫)")
    assert text[-2:] == ["⟪and\\x1b[2J", "more⟫"] and text[-3] == "⟦river<|im_end|>⟧"
    coloured = show(sample, bpe, colour=True, cut_text="and more")
    assert coloured.endswith("\x1b[31mand more\x1b[0m") and "⟪" not in coloured
    assert "cut" not in show(sample, bpe, colour=False)


def test_long_cut_text_is_shortened_and_says_so(bpe):
    shown = show(encode(bpe, "who", "river")[0], bpe, colour=False, cut_text="x" * 5000)
    assert shown.endswith("x... (5000 characters)⟫") and len(shown) < 1000


def test_rows_that_came_as_ids_are_decoded(bpe):
    ids = bpe.backend_tokenizer.encode("the river runs deep").ids
    sample = make_sample(ids, [-100, *ids[1:]])
    first = bpe.backend_tokenizer.decode(ids[:1])
    assert list(split_by_training(sample, bpe)) == [
        (False, first),
        (True, "the river runs deep".removeprefix(first)),
    ]


def test_a_batch_taken_apart_is_what_went_in(bpe):
    talks = (("who", "世界"), ("the river", "runs deep"), ("42", "metres"))
    samples = [encode(bpe, *talk)[0] for talk in talks]
    # A text is learned from its second token on: nothing comes before its first.
    samples.append(make_sample([5, 6, 7], [5, 6, 7]))
    apart = list(map(as_lists, samples_of_batch(collate(samples))))
    samples = list(map(as_lists, samples))
    assert [sample.input_ids for sample in apart] == [sample.input_ids for sample in samples]
    assert [sample.labels for sample in apart[:3]] == [sample.labels for sample in samples[:3]]
    assert apart[3].labels == [-100, 6, 7]


def test_a_pack_shows_where_samples_begin(bpe):
    samples = [encode(bpe, "who", "世界 river")[0], encode(bpe, "q", "deep " * 200)[0]]
    first, second = map(len, samples)
    trained = [sample.num_trained for sample in samples]
    shown = format_pack(samples, bpe, room=2 * (first + second), colour=False).split("\n")
    assert shown[0] == (
        f"2 samples, {first + second} tokens of {2 * (first + second)} (50.0%), {sum(trained)} trained"
    )
    assert shown[1] == f"── sample 1, tokens 0 to {first - 1}, {trained[0]} trained ──"
    at = shown.index(f"── sample 2, tokens {first} to {first + second - 1}, {trained[1]} trained ──")
    assert shown[at - 1] == "⟦世界 river<|im_end|>⟧"
    assert shown[-1].endswith(" characters more)")
    assert "of" not in format_pack(samples[:1], bpe, room=None, colour=False).split("\n")[0]


def test_a_long_sample_says_that_it_is_cut(bpe):
    shown = show(encode(bpe, "q", "river " * 900)[0], bpe, colour=False)
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
