"""Ids and labels of a row, grown together; and the tokenizers that make them (the only transformers here).

    conversation   BOS head question .. head [answer end-mark] \\n head question .. head [answer end-mark]
    labels         -100 but in [ ]: contents of trained assistant turns and the marks that end them
    document       BOS? text eos, all of it learned; windows of max_length where it is longer

The rendered text is tokenised once, as inference does. For each trained turn the ids of the prompt as chat
would send it must be the first of the row's; where they are not (a tokenizer that joins the last character
of the prompt to the first of the answer) the row is kept and counted, and no token that holds a character
of the prompt is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyft.config import ConfigError, DataError
from pyft.data.converters import Message, Row
from pyft.data.ids import Encoded, SpelledText, encode_all
from pyft.data.templates import ChatTemplate, Rendered, TemplateFailure
from pyft.data.tokenizer import is_sentencepiece, load_sentencepiece, read_tokenizer_config, train_bpe

__all__ = [
    "IGNORED",
    "EncodedRow",
    "Sample",
    "build_tokenizer",
    "encode_conversation",
    "encode_conversations",
    "load_tokenizer",
]

IGNORED = -100
END_OF_TEXT = "<|endoftext|>"
ROWS_AT_A_TIME = 512


@dataclass(frozen=True)
class Sample:
    """Ids with a label each (-100: not learned), the row they come from, and the text the ids spell."""

    input_ids: list[int]
    labels: list[int]
    source: str
    text: str

    @property
    def num_trained(self) -> int:
        """Labels that are learned."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True)
class EncodedRow:
    """What became of one row: its samples (none where nothing is learned in it), and its counts."""

    samples: tuple[Sample, ...]
    turns_cut: int = 0
    prompt_differs: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens in all samples of the row."""
        return sum(len(sample.input_ids) for sample in self.samples)


def encode_conversation(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], source: str = ""
) -> Sample | None:
    """Encode one conversation; see encode_conversations.

    Args:
        tokenizer: The tokenizer the template was made for.
        template: The renderer.
        messages: The turns.
        source: `file:line`, for messages.

    Returns:
        The sample, or None where no turn is trained.
    """
    samples = next(encode_conversations(tokenizer, template, [Row(tuple(messages), None, source)])).samples
    return samples[0] if samples else None


def encode_conversations(
    tokenizer: Any, template: ChatTemplate, rows: Sequence[Row], system: str | None = None
) -> Iterator[EncodedRow]:
    """Encode chat rows.

    DataError is raised further down where the template refuses a row, or a row holds tool calls.

    Args:
        tokenizer: The tokenizer the template was made for.
        template: The renderer.
        rows: Rows with messages.
        system: System text for rows that have none.

    Yields:
        EncodedRow: One for each row, in order; turns after the last trained one are cut.
    """
    for first in range(0, len(rows), ROWS_AT_A_TIME):
        plans = [_plan(template, row, system) for row in rows[first : first + ROWS_AT_A_TIME]]
        texts = [text for plan in plans for text in plan.texts]
        encoded = iter(encode_all(tokenizer, texts, template.control_tokens))
        for plan in plans:
            yield _label(plan, [next(encoded) for _ in plan.texts])


@dataclass(frozen=True)
class _Plan:
    """One rendered row: the whole, and for each trained turn its span and the prompt that leads to it."""

    source: str
    turns_cut: int
    whole: Rendered | None
    turns: tuple[tuple[tuple[int, int], Rendered], ...] = ()

    @property
    def texts(self) -> list[SpelledText]:
        """What has to be tokenised: the whole, then the prompts."""
        return [self.whole.spelled, *(prompt.spelled for _, prompt in self.turns)] if self.whole else []


def _plan(template: ChatTemplate, row: Row, system: str | None) -> _Plan:
    if row.messages is None:
        raise DataError(
            f"{row.source}: mode sft reads conversations, this row is a plain text: write mode: "
            "pretrain, or rows of "
            "another format"
        )
    messages = list(row.messages)
    if row.uses_tools:
        raise DataError(
            f"{row.source}: the row uses tools, which {template.name} has no place for: take it out"
        )
    if system and not any(message.role == "system" for message in messages):
        messages.insert(0, Message("system", system))
    trained = [i for i, message in enumerate(messages) if message.role == "assistant" and message.trained]
    if not trained:
        return _Plan(row.source, 0, None)
    kept = messages[: trained[-1] + 1]
    try:
        whole = template.render(kept)
        answers = [i for i, message in enumerate(kept) if message.role == "assistant"]
        spans = dict(zip(answers, whole.spans, strict=True))
        turns = tuple((spans[i], template.render(kept[:i], add_generation_prompt=True)) for i in trained)
    except TemplateFailure as error:
        raise DataError(
            f"{row.source}: template {template.name} refuses the row: {error}: mend the row"
        ) from None
    return _Plan(row.source, len(messages) - len(kept), whole, turns)


def _label(plan: _Plan, encoded: list[Encoded]) -> EncodedRow:
    if plan.whole is None:
        return EncodedRow(())
    whole, *prompts = encoded
    labels = [IGNORED] * len(whole.ids)
    differs = False
    for ((start, end), prompt), prompt_encoded in zip(plan.turns, prompts, strict=True):
        num_prompt = len(prompt_encoded.ids)
        leads = plan.whole.text.startswith(prompt.text) and whole.ids[:num_prompt] == prompt_encoded.ids
        differs = differs or not leads
        # Offsets of some tokenizers leave out blanks, so the exact boundary is the prompt's length where it
        # is known.
        first = num_prompt if leads and len(prompt.text) == start else whole.first_at(start)
        last = whole.first_at(end)
        labels[first:last] = whole.ids[first:last]
    sample = Sample(whole.ids, labels, plan.source, plan.whole.text)
    return EncodedRow((sample,) if sample.num_trained else (), plan.turns_cut, differs)


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
