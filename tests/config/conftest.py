"""Recipes written by the tests of pyft.config, in a folder of their own that is the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyft.config.load import Recipe, load_recipe
from pyft.errors import ConfigError

SMALLEST = "model: {name_or_path: ./base}\ndata: {train: [{path: rows.jsonl}]}\n"

Load = Callable[..., Recipe]
Mistakes = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Give load(text, *overrides): the recipe that a file of this text and these overrides make."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str | bytes, *overrides: str) -> Recipe:
        content = text.encode() if isinstance(text, str) else text
        Path("recipe.yaml").write_bytes(content)
        return load_recipe("recipe.yaml", list(overrides))

    return from_text


@pytest.fixture
def mistakes(load: Load) -> Mistakes:
    """Give mistakes(text, *overrides): the messages the recipe is refused with."""

    def of_text(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.messages

    return of_text


@pytest.fixture
def smallest() -> str:
    """The shortest recipe that is right."""
    return SMALLEST
