"""Ids and labels of a text whose learned stretches are written down by hand: what pyft's must be."""

from __future__ import annotations

from typing import Any

IGNORED = -100
Piece = tuple[str, bool]


def label(tokenizer: Any, pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Tokenise the pieces as one text, as servers do; learned are tokens that begin in a learned one."""
    text = "".join(piece for piece, _ in pieces)
    learned = [is_learned for piece, is_learned in pieces for _ in piece]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    starts = (start for start, _ in encoded["offset_mapping"])
    return ids, [i if learned[start] else IGNORED for i, start in zip(ids, starts, strict=True)]


def chatml(turns: list[tuple[str, str]], *, bos: str = "", learned: set[int] | None = None) -> list[Piece]:
    """Write (role, content) turns as ChatML; `learned` numbers the assistant's turns from 0, None for all."""
    pieces: list[Piece] = [(bos, False)]
    answers = 0
    for role, content in turns:
        is_learned = role == "assistant" and (learned is None or answers in learned)
        answers += role == "assistant"
        pieces += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", is_learned), ("\n", False)]
    return pieces
