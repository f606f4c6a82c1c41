"""Show samples as the model sees them, with what is learned, what is only read and what was cut marked.

                 learned    only read    cut off
    terminal     green      dim          red
    elsewhere    in ⟦ ⟧     plain        in ⟪ ⟫

All text shown is decoded from the ids. Control characters in it are written as escapes, so that no data can
steer a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyft.data.encode.sample import IGNORED, Sample
from pyft.data.show.terminal import DIM, GREEN, RED, escape, paint

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch

_LONGEST_CHARACTERS = 2000
_LONGEST_CUT_CHARACTERS = 400
_LONGEST_CHARACTERS_IN_PACK = 300


def format_sample(sample: Sample, source: str, tokenizer: Any, *, colour: bool, cut_text: str = "") -> str:
    """Write one sample under a heading, learned parts marked; `cut_text` was left out at its end."""
    learned, cut = ("green", "red") if colour else ("in ⟦ ⟧", "in ⟪ ⟫")
    heading = f"{source}: {len(sample)} tokens, {sample.num_trained} trained ({learned})"
    lines = [f"{heading}, the rest was cut ({cut})" if cut_text else heading]
    body, num_characters = _mark(sample, tokenizer, colour, _LONGEST_CHARACTERS)
    if num_characters > _LONGEST_CHARACTERS:
        lines.append(f"(the first {_LONGEST_CHARACTERS} of {num_characters} characters)")
    if cut_text:
        shown = escape(cut_text[:_LONGEST_CUT_CHARACTERS])
        more = f"... ({len(cut_text)} characters)" if len(cut_text) > _LONGEST_CUT_CHARACTERS else ""
        body += paint(shown + more, RED) if colour else f"⟪{shown}{more}⟫"
    return "\n".join([*lines, body])


def format_pack(samples: Sequence[Sample], tokenizer: Any, *, room: int | None, colour: bool) -> str:
    """Write one pack: its fill, where it has `room`, then each sample after a line that says where it is."""
    tokens = sum(map(len, samples))
    trained = sum(sample.num_trained for sample in samples)
    fill = f" of {room} ({tokens / room:.1%})" if room else ""
    many = "" if len(samples) == 1 else "s"
    lines = [f"{len(samples)} sample{many}, {tokens} tokens{fill}, {trained} trained"]
    begin = 0
    for number, sample in enumerate(samples, start=1):
        end = begin + len(sample)
        lines.append(f"── sample {number}, tokens {begin} to {end - 1}, {sample.num_trained} trained ──")
        body, num_characters = _mark(sample, tokenizer, colour, _LONGEST_CHARACTERS_IN_PACK)
        more = num_characters - _LONGEST_CHARACTERS_IN_PACK
        lines.append(body.removesuffix("\n") + (f"... ({more} characters more)" if more > 0 else ""))
        begin = end
    return "\n".join(lines)


def samples_of_batch(batch: Batch) -> list[Sample]:
    """Take a batch apart: the samples as training really sees them, so their first token is never learned."""
    ids = batch.input_ids[0].numpy().astype(np.int32)
    labels = np.concatenate(([IGNORED], batch.targets[0, :-1].numpy()), dtype=np.int32)
    bounds = batch.cu_seqlens[1:-1].numpy()
    return list(map(Sample, np.split(ids, bounds), np.split(labels, bounds)))


def spelled_text(sample: Sample, tokenizer: Any) -> str:
    """Decode all ids; not what was written if a tokenizer normalises text or a window cuts a character."""
    return _decode(sample.input_ids, tokenizer)


def _decode(ids: np.ndarray, tokenizer: Any) -> str:
    return tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def split_by_training(sample: Sample, tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """Cut what a sample's ids spell where learning starts and stops; say which are learned."""
    text = spelled_text(sample, tokenizer)
    is_learned = sample.labels != IGNORED
    done = 0
    for end in (*np.flatnonzero(np.diff(is_learned)) + 1, len(sample)):
        after = len(text) if end == len(sample) else len(_decode(sample.input_ids[:end], tokenizer))
        yield bool(is_learned[end - 1]), text[done:after]
        done = after


def _mark(sample: Sample, tokenizer: Any, colour: bool, longest: int) -> tuple[str, int]:
    """Write the first `longest` characters of a sample, learned ones marked; count all of them."""
    body, written = "", 0
    for is_trained, text in split_by_training(sample, tokenizer):
        shown = escape(text[: max(0, longest - written)])
        written += len(text)
        if not shown:
            continue
        if colour:
            body += paint(shown, GREEN if is_trained else DIM)
        else:
            body += f"⟦{shown}⟧" if is_trained else shown
    return body, written
