"""Tokenizers: loaded from a folder or file, or built from texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyft.data.tokenizers.bpe import is_sentencepiece, load_sentencepiece, read_tokenizer_config, train_bpe
from pyft.errors import ConfigError, first_line

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load a fast tokenizer (PreTrainedTokenizerFast) from this machine.

    `path` is a Hugging Face folder or a sentencepiece `.model` (a file, or a folder with nothing but
    tokenizer.model), which gets sentencepiece's own ids; a warning line is printed where it does not.
    ConfigError if there is none, no fast one, or it needs remote code that is not allowed.
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
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ConfigError(
                f"model.trust_remote_code: the tokenizer in {path} brings its own Python code: read that "
                "code, then "
                "write model.trust_remote_code: true, or name another tokenizer with model.tokenizer"
            ) from error
        raise ConfigError(
            f"model.tokenizer: no tokenizer can be loaded from {path} ({first_line(error)}): check it"
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

    `vocab_size` is at most the number of all entries; ConfigError if it is too small.
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
