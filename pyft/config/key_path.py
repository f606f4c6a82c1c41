"""Places inside a recipe: a tuple of keys and list indices, written `data.train[0].path`."""

from __future__ import annotations

import re

KeyPath = tuple[str | int, ...]

_STEP = re.compile(r"(?:^|(?<!^)\.)(?P<key>[^.\[\]\s]{1,100})|\[(?P<index>[0-9]{1,6})\]")


def show_path(path: KeyPath) -> str:
    """Write a path as people do.

    Args:
        path: keys and indices, outermost first.

    Returns:
        Text such as `data.train[0].path`.
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def parse_path(text: str) -> KeyPath:
    """Read what `show_path` writes.

    Args:
        text: such as `data.train[0].path`.

    Returns:
        The path.

    Raises:
        ValueError: the text is not a path.
    """
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None or (position == 0 and match["index"] is not None):
            raise ValueError(f"{text!r} is not a key path")
        steps.append(match["key"] if match["index"] is None else int(match["index"]))
        position = match.end()
    if not steps:
        raise ValueError("a key path is not empty")
    return tuple(steps)
