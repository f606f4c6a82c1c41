"""Rows to ids and labels; and the tokenizers that do it (the only transformers here).

    Row -> RowEncoder -> EncodedRow      a conversation (tokens/dialogues.py), a document
                                         (tokens/documents.py), or ids that were made elsewhere, which are
                                         checked and taken as they are

A RowEncoder can be sent to another process, which then needs no transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyft.config import ConfigError, DataError
from pyft.data.conversation import Message, Row
from pyft.data.samples import IGNORED, EncodedRow, EncodeOptions, Sample
from pyft.data.templates import ChatTemplate
from pyft.data.tokens.dialogues import ConversationEncoder
from pyft.data.tokens.documents import DocumentEncoder, document_text
from pyft.data.tokens.lengths import fit
from pyft.data.tokens.tokenizer import is_sentencepiece, load_sentencepiece, read_tokenizer_config, train_bpe
from pyft.data.tokens.tokenizer_view import TokenizerView

__all__ = [
    "IGNORED",
    "EncodeOptions",
    "EncodedRow",
    "RowEncoder",
    "Sample",
    "build_tokenizer",
    "encode_conversation",
    "load_tokenizer",
]

END_OF_TEXT = "<|endoftext|>"
# What is tokenised at once: a tokenizer's answer takes some hundred bytes a token.
_MOST_ROWS = 512
_MOST_CHARACTERS = 1 << 20


class RowEncoder:
    """Encodes rows of any kind for one stage of a recipe."""

    def __init__(self, tokenizer: Any, template: ChatTemplate | None, options: EncodeOptions) -> None:
        """Put an encoder together.

        Args:
            tokenizer: A fast tokenizer, or a view of one.
            template: The renderer made for it; needed in mode sft.
            options: The mode, what is learned, and how long a sample may be.
        """
        view = TokenizerView.from_tokenizer(tokenizer)
        self._options = options
        self._num_ids = len(view)
        self._documents = DocumentEncoder(view, options) if options.mode == "pretrain" else None
        is_chat = options.mode == "sft" and template is not None
        self._conversations = ConversationEncoder(view, template, options) if is_chat else None

    def encode(self, rows: Sequence[Row], system: str | None = None) -> list[EncodedRow]:
        """Encode rows.

        Args:
            rows: Rows of one source.
            system: The system text of the source, for rows that have none; None for that of the options.

        Returns:
            For each row, in order, what became of it; a row that cannot be used has its `error` set.
        """
        system = self._options.system if system is None else system
        results: list[EncodedRow] = []
        for some in _group(rows):
            given = [self._check(row) for row in some]
            to_encode = [row for row, result in zip(some, given, strict=True) if result is None]
            encoded = self._encode(to_encode, system)
            results.extend(result or next(encoded) for result in given)
        return results

    def _encode(self, rows: Sequence[Row], system: str | None) -> Iterator[EncodedRow]:
        if self._documents is not None:
            return self._documents.encode(rows)
        return self._conversations.encode(rows, system)

    def _check(self, row: Row) -> EncodedRow | None:
        """Take ready-made ids, and refuse what the mode cannot use; None for what is to be encoded."""
        if row.tokens is not None:
            return self._take_tokens(*row.tokens, row.source)
        if self._documents is not None and document_text(row) is None:
            return _refuse(
                row,
                "mode pretrain reads plain texts, this row is a conversation: write mode: sft, or rows of "
                '{"text": ".."}',
            )
        if self._documents is None and row.messages is None:
            return _refuse(
                row,
                "mode sft reads conversations, this row is a plain text: write mode: pretrain, or rows of "
                "another format",
            )
        return None

    def _take_tokens(self, ids: list[int], labels: list[int], source: str) -> EncodedRow:
        error = None
        if len(ids) != len(labels):
            error = (
                f"{len(ids)} input_ids and {len(labels)} labels: give each id a label, {IGNORED} or the id"
            )
        elif ids and (min(ids) < 0 or max(ids) >= self._num_ids):
            index = next(i for i, token in enumerate(ids) if not 0 <= token < self._num_ids)
            error = (
                f"input_ids[{index}] is {ids[index]}, but the tokenizer's go from 0 to {self._num_ids - 1}: "
                "tokenize the rows with the tokenizer of model.tokenizer"
            )
        else:
            pairs = enumerate(zip(ids, labels, strict=True))
            index = next((i for i, (token, label) in pairs if label not in (IGNORED, token)), None)
            if index is not None:
                error = f"labels[{index}] is {labels[index]}: write {IGNORED} or the id, {ids[index]}"
        if error is not None:
            return EncodedRow((), error=f"{source}: {error}")
        return fit(Sample(ids, labels, source), self._options, lambda index: 0)


def _group(rows: Sequence[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    num_characters = 0
    for row in rows:
        group.append(row)
        num_characters += len(row.text or "") + sum(len(message.content) for message in row.messages or ())
        if len(group) == _MOST_ROWS or num_characters >= _MOST_CHARACTERS:
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def _refuse(row: Row, problem: str) -> EncodedRow:
    return EncodedRow((), error=f"{row.source}: {problem}")


def encode_conversation(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], source: str = ""
) -> Sample | None:
    """Encode one conversation, of any length, learning every trained turn.

    Args:
        tokenizer: The tokenizer the template was made for.
        template: The renderer.
        messages: The turns.
        source: `file:line`, for messages.

    Returns:
        The sample, or None where no turn is trained.

    Raises:
        DataError: The template refuses the conversation.
    """
    encoder = RowEncoder(tokenizer, template, EncodeOptions("sft"))
    (row,) = encoder.encode([Row(tuple(messages), None, source)])
    if row.error is not None:
        raise DataError(row.error)
    return row.samples[0] if row.samples else None


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer from this machine.

    Args:
        path: A Hugging Face folder, or a sentencepiece `.model` (a file, or a folder with tokenizer.model
            alone): that one gives sentencepiece's own ids, and a warning line is printed where it does not.
        trust_remote_code: Run Python code that the folder brings along.

    Returns:
        A fast tokenizer (PreTrainedTokenizerFast).

    Raises:
        ConfigError: No such path, no tokenizer in it, no fast one, or it needs remote code that is not
            allowed.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = str(path)
    if not Path(path).exists():
        raise ConfigError(
            f"model.tokenizer: {path} does not exist: write the path of a tokenizer's folder or .model"
        )
    needs_code = Path(path).is_dir() and "AutoTokenizer" in read_tokenizer_config(Path(path)).get(
        "auto_map", {}
    )
    model_file = is_sentencepiece(path)
    if model_file is not None and not needs_code:
        backend, settings = load_sentencepiece(model_file)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings
        )
    if not Path(path).is_dir():
        raise ConfigError(
            f"model.tokenizer: {path} is neither a folder nor a .model file: write one of these"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ConfigError(
                f"model.trust_remote_code: the tokenizer in {path} brings its own Python code: read that "
                "code, then "
                "write model.trust_remote_code: true, or name another tokenizer with model.tokenizer"
            ) from error
        raise ConfigError(
            f"model.tokenizer: no tokenizer can be loaded from {path} ({first_line}): check it"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.tokenizer: {path} has no fast tokenizer (tokenizer.json): name its tokenizer.model, "
            "or convert it"
        )
    return tokenizer


def build_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    control_tokens: Sequence[str] = (),
    chat_template: str | None = None,
) -> Any:
    """Build a byte-level BPE tokenizer from texts; eos and pad are `<|endoftext|>`, and there is no BOS.

    ConfigError is raised further down where vocab_size is too small.

    Args:
        texts: The corpus.
        vocab_size: Entries in all, at most.
        control_tokens: Those of the chat templates that will be used.
        chat_template: Jinja text to go with it.

    Returns:
        A fast tokenizer; its save_pretrained writes an ordinary Hugging Face folder.
    """
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys([END_OF_TEXT, *control_tokens]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts, vocab_size, special),
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
