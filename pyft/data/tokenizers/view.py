"""What encoding needs of a fast tokenizer, in an object that can be sent to another process.

A worker that gets a TokenizerView imports the `tokenizers` package alone, which takes a tenth of a second;
transformers takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer


@dataclass(frozen=True, eq=False)
class TokenizerView:
    """A fast tokenizer as it was when the view was made; the names are transformers' own."""

    backend_tokenizer: Tokenizer
    special_tokens_map: dict[str, str]
    added_tokens_encoder: dict[str, int]
    added_tokens_decoder: dict[int, AddedToken]
    chat_template: str | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TokenizerView:
        """Make a view of a transformers tokenizer, which shares its backend; a view is returned as it is."""
        if isinstance(tokenizer, cls):
            return tokenizer
        try:
            chat_template = tokenizer.get_chat_template()
        except ValueError:
            chat_template = None
        special = tokenizer.special_tokens_map.items()
        return cls(
            tokenizer.backend_tokenizer,
            {key: str(value) for key, value in special if isinstance(value, str | AddedToken)},
            dict(tokenizer.added_tokens_encoder),
            dict(tokenizer.added_tokens_decoder),
            chat_template,
        )

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        """The token that begins texts, if there is one."""
        return self.special_tokens_map.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """Its id."""
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token(self) -> str | None:
        """The token that ends texts, if there is one."""
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""
        return self.convert_tokens_to_ids(self.eos_token)

    def convert_tokens_to_ids(self, token: str | None) -> int | None:
        """Look up the id of a token; the unknown token's, if any, where the vocabulary lacks it."""
        if token is None:
            return None
        token_id = self.backend_tokenizer.token_to_id(token)
        if token_id is None and "unk_token" in self.special_tokens_map:
            return self.backend_tokenizer.token_to_id(self.special_tokens_map["unk_token"])
        return token_id

    def get_chat_template(self) -> str:
        """Return the tokenizer's own chat template; ValueError if it has none."""
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template")
        return self.chat_template
