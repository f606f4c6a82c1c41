"""Pretraining: every token of plain texts is learned, and questions are texts to continue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyft.config.modes import PRETRAIN
from pyft.data.chat.bind import encode_text_prompt
from pyft.tasks.next_token import NextToken

if TYPE_CHECKING:
    from pyft.data.chat.chat_template import ChatTemplate


class Pretrain(NextToken):
    """Mode pretrain."""

    mode = PRETRAIN

    def prompt_ids(
        self, prompt: str, system: str | None, tokenizer: Any, template: ChatTemplate | None
    ) -> list[int]:
        """Return the ids of the prompt as a document begins."""
        return encode_text_prompt(tokenizer, prompt)

    def stop_ids(self, tokenizer: Any, template: ChatTemplate | None) -> list[int]:
        """Return the token that ends a document."""
        return [tokenizer.eos_token_id]
