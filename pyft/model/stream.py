"""Tokens to text as they come, whole characters only."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Turns tokens into text as they come, holding back pieces of characters that are not complete.

    Args:
        decode: ids to text.
        write: takes each new piece.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]) -> None:
        self._decode, self._write = decode, write
        self._ids: list[int] = []
        # Text of ids[start:shown] is out. It is decoded again with what follows, since a token's text may
        # depend on the one before it (sentencepiece drops the blank before the first).
        self._start = self._shown = 0
        self.text = ""

    def put(self, token: int) -> None:
        """Take a token's id."""
        self._ids.append(token)
        whole = self._decode(self._ids[self._start :])
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            self._emit(whole)

    def end(self) -> None:
        """Write what was held back; bytes that never became a character show as the replacement character."""
        self._emit(self._decode(self._ids[self._start :]))

    def _emit(self, whole: str) -> None:
        before = self._decode(self._ids[self._start : self._shown])
        piece = whole[len(before) :]
        # Counted as written first: a Ctrl-C during the write must not show the piece twice.
        self._start, self._shown = self._shown, len(self._ids)
        self.text += piece
        if piece:
            self._write(piece)
