"""Show a sample as the model sees it: what is learned and what is only read told apart.

On a terminal learned text is green and the rest dim; elsewhere learned text stands in marks ⟦ ⟧. Control
characters in the data are written as escapes, so that no data can steer a terminal.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from pyft.data.collate import IGNORED
from pyft.data.encode import Sample

_GREEN, _DIM, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_LONGEST_CHARACTERS = 2000


def wants_colour() -> bool:
    """Say whether standard output is a terminal that may be coloured.

    Returns:
        False for a pipe or file, or where NO_COLOR is set.
    """
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def format_sample(sample: Sample, tokenizer: Any, *, colour: bool) -> str:
    """Write one sample, learned parts marked.

    Args:
        sample: The sample.
        tokenizer: The tokenizer that made it.
        colour: Use terminal colours in place of marks.

    Returns:
        A heading line and the text.
    """
    trained = sample.num_trained
    legend = "green" if colour else "in ⟦ ⟧"
    lines = [f"{sample.source}: {len(sample.input_ids)} tokens, {trained} trained ({legend})"]
    body, written = "", 0
    for is_trained, text in split_by_training(sample, tokenizer):
        shown = text[: max(0, _LONGEST_CHARACTERS - written)]
        written += len(text)
        shown = "".join(_escape(character) for character in shown)
        if not shown:
            continue
        if colour:
            body += f"{_GREEN if is_trained else _DIM}{shown}{_RESET}"
        else:
            body += f"⟦{shown}⟧" if is_trained else shown
    if written > _LONGEST_CHARACTERS:
        lines.append(f"(the first {_LONGEST_CHARACTERS} of {written} characters)")
    return "\n".join([*lines, body])


def spelled_text(sample: Sample, tokenizer: Any) -> str:
    """Say what a sample's ids spell, which a tokenizer that normalises text makes differ from what was
    written.

    Args:
        sample: The sample.
        tokenizer: The tokenizer that made it.

    Returns:
        The decoded ids, special tokens included; U+FFFD where a window of a document cuts a character.
    """
    return tokenizer.backend_tokenizer.decode(sample.input_ids, skip_special_tokens=False)


def split_by_training(sample: Sample, tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """Cut a sample's text where learning starts and stops.

    Args:
        sample: The sample.
        tokenizer: The tokenizer that made it.

    Yields:
        tuple[bool, str]: Whether the stretch is learned, and its text; the texts in a row are the sample's.
    """
    backend = tokenizer.backend_tokenizer
    position = done = 0
    for is_trained, run in groupby(label != IGNORED for label in sample.labels):
        position += len(list(run))
        if position == len(sample.labels):
            end = len(sample.text)
        else:
            end = len(backend.decode(sample.input_ids[:position], skip_special_tokens=False))
        yield is_trained, sample.text[done:end]
        done = end


def _escape(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp"):
        return character
    # Joiners in emoji and marks of right-to-left text are format characters too, but harmless.
    if (
        unicodedata.category(character) == "Cf"
        and character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ):
        return character
    return repr(character)[1:-1]
