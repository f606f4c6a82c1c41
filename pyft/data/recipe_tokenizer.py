"""The tokenizer a recipe means: a model's own, one at a path, or one built from the training texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyft.config.load import Recipe
from pyft.config.modes import MODES
from pyft.config.schema import Stage, TokenizerConfig
from pyft.data.chat.template_names import find_template
from pyft.data.rows.formats import iter_rows
from pyft.data.rows.row import Row
from pyft.data.tokenizers.load import build_tokenizer, load_tokenizer
from pyft.errors import ConfigError


def tokenizer_for(recipe: Recipe, stage: Stage) -> Any:
    """Load or build the tokenizer of a recipe: all its stages share that of the first.

    ConfigError if it cannot be loaded or the recipe names none; DataError if a file to build it from cannot
    be read.
    """
    model = recipe.stages[0].model
    if isinstance(model.tokenizer, TokenizerConfig):
        return _build(recipe, model.tokenizer.vocab_size)
    path = model.tokenizer or model.name_or_path
    if path is None:
        raise ConfigError("the recipe names no tokenizer (model.tokenizer): write its path, or {type: bpe}")
    if model.tokenizer is None and not Path(path).is_dir():
        raise ConfigError(
            f"no such model folder (model.name_or_path {path}): write the path of a model here, as "
            "model.name_or_path=./Qwen2.5-7B-Instruct"
        )
    return load_tokenizer(path, trust_remote_code=stage.model.trust_remote_code)


def _build(recipe: Recipe, vocab_size: int) -> Any:
    chats = [stage for stage in recipe.stages if MODES[stage.mode].has_template]
    names = [stage.model.template or "chatml" for stage in chats] or ["chatml"]
    builtins = [find_template(name) for name in names]
    control_tokens = [token for builtin in builtins for token in builtin.control_tokens]
    return build_tokenizer(
        _training_texts(recipe),
        vocab_size=vocab_size,
        control_tokens=control_tokens,
        chat_template=builtins[-1].source,
    )


def _training_texts(recipe: Recipe) -> Iterator[str]:
    """Yield everything the stages learn from, each source once."""
    seen = set()
    for stage in recipe.stages:
        for source in stage.data.train:
            key = source.model_dump_json(exclude={"system", "max_samples", "weight"})
            if key not in seen:
                seen.add(key)
                for row in iter_rows(source, on_bad_record=stage.data.on_bad_record):
                    yield from _row_texts(row)


def _row_texts(row: Row) -> Iterator[str]:
    if row.text is not None:
        yield row.text
    if row.tools:
        yield json.dumps(row.tools, ensure_ascii=False)
    for message in row.messages or ():
        yield message.content
        if message.reasoning_content:
            yield message.reasoning_content
        if message.tool_calls:
            yield json.dumps(message.tool_calls, ensure_ascii=False)
