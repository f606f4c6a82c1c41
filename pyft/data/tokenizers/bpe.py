"""Build a tokenizer from texts, and read what a tokenizer folder says about itself. Only the `tokenizers`
package.

The tokenizer built is a byte-level BPE: every text has ids, and ids give back every text. Words are split as
by GPT-4 and Qwen, with two differences that suit small corpora: each Chinese or Japanese character stands
alone (a merge over whole sentences would learn the sentences instead of the language), and so does each
digit. Training is deterministic: equal texts in equal order give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from pyft.data.tokenizers.sentencepiece import read_sentencepiece, warn_where_different
from pyft.errors import ConfigError

# An alternative each: contractions; one CJK character; a word with at most one sign or blank before it; one
# digit; signs; line ends; blanks, of which the last goes with the word that follows.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    rf"|[{_CJK}]"
    rf"|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_CJK}])\p{{L}})+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
_SETTINGS = ("bos_token", "eos_token", "unk_token", "pad_token")


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE; special tokens get the first ids.

    `vocab_size` counts all entries, fewer if the corpus has no more pairs; ConfigError if the 256 bytes and
    the special tokens do not fit.
    """
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ConfigError(
            f"model.tokenizer.vocab_size: {vocab_size} has no room for 256 bytes and "
            f"{len(special_tokens)} special "
            f"tokens: write at least {smallest}"
        )
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def is_sentencepiece(path: str) -> str | None:
    """Return the `.model` file that a path means; None for a folder with a tokenizer.json or no model."""
    if path.endswith(".model"):
        return path
    model = Path(path) / "tokenizer.model"
    return str(model) if model.is_file() and not (Path(path) / "tokenizer.json").exists() else None


def load_sentencepiece(path: str) -> tuple[Tokenizer, dict[str, Any]]:
    """Make a backend from a `.model`, and the settings to give a transformers tokenizer.

    The settings are special tokens and chat template, also from the tokenizer_config.json beside the file;
    ConfigError if they do not fit it, or it is not a sentencepiece model.
    """
    model = read_sentencepiece(path)
    warn_where_different(model.backend, path)
    found = {"bos_token": model.bos, "eos_token": model.eos, "unk_token": model.unk, "pad_token": model.pad}
    settings = {key: value for key, value in found.items() if value is not None}
    if Path(path).name != "tokenizer.model":
        return model.backend, settings
    folder = Path(path).parent
    config = read_tokenizer_config(folder)
    for token_id, token in sorted(
        config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])
    ):
        special = bool(token.get("special"))
        model.backend.add_tokens([AddedToken(token["content"], normalized=False, special=special)])
        if model.backend.token_to_id(token["content"]) != int(token_id):
            raise ConfigError(
                f"model.tokenizer: {folder}/tokenizer_config.json gives {token['content']!r} the id "
                f"{token_id}, which "
                "does not fit tokenizer.model: give the folder its tokenizer.json"
            )
    for key in _SETTINGS:
        if key in config:
            value = config[key]
            settings[key] = value["content"] if isinstance(value, dict) else value
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    elif config.get("chat_template"):
        settings["chat_template"] = config["chat_template"]
    return model.backend, {key: value for key, value in settings.items() if value is not None}


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read a folder's tokenizer_config.json; {} if there is none."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer: {file} cannot be read ({error}): fix it") from None
    if not isinstance(config, dict):
        raise ConfigError(f"model.tokenizer: {file} is not an object: fix it")
    return config
