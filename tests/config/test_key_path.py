"""Key paths: written and read alike."""

from __future__ import annotations

import pytest

from pyft.config.key_path import parse_path, show_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("mode", ("mode",)),
        ("train.seed", ("train", "seed")),
        ("data.train[0].path", ("data", "train", 0, "path")),
        ("stages[12].data.train[3]", ("stages", 12, "data", "train", 3)),
        ("a[0][1]", ("a", 0, 1)),
    ],
)
def test_round_trip(text: str, path: tuple[str | int, ...]) -> None:
    assert parse_path(text) == path
    assert show_path(path) == text


@pytest.mark.parametrize(
    "text", ["", ".", ".a", "a.", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a b", "a[0]b", "x" * 101]
)
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_path(text)
