"""Checks of single values of a recipe that a type and a range cannot express: paths, shares, lists, mappings.

Each takes the value as it is written and returns it as it is kept; a ValueError says how to fix it, and
`explain` puts the rest of the sentence before it.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

SHIPPED_DATA = Path(__file__).resolve().parent.parent / "recipes" / "data"
SHIPPED_PREFIX = "pyft://"
HUB_PREFIX = "hf://"
TEMPLATE_SUFFIX = ".jinja"
LARGEST_COUNT = 2**31 - 1

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_OTHER_ADDRESS = re.compile(r"\w+://")


def absolute_path(path: str) -> str:
    """Make a path absolute, from the current folder; `~` is the home folder.

    Args:
        path: any path; wildcards are kept.

    Returns:
        The absolute path.

    Raises:
        ValueError: the path holds a NUL.
    """
    if "\0" in path:
        raise ValueError("remove the NUL character")
    return os.path.abspath(os.path.expanduser(path))


def data_path(path: str) -> str:
    """Check where the rows of a source are.

    Args:
        path: a file, folder or glob; `pyft://` and a shipped file; or `hf://` and a data set of the hub.

    Returns:
        An absolute path, or the name on the hub as it is.

    Raises:
        ValueError: it is another kind of address, or no name after the prefix.
    """
    if path.startswith(HUB_PREFIX):
        if not _HUB_NAME.fullmatch(path.removeprefix(HUB_PREFIX)):
            raise ValueError(f"name a data set of the hub, as {HUB_PREFIX}owner/name")
        return path
    if path.startswith(SHIPPED_PREFIX):
        parts = path.removeprefix(SHIPPED_PREFIX).split("/")
        if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            raise ValueError(f"name a shipped file, as {SHIPPED_PREFIX}folder/file.jsonl")
        return str(SHIPPED_DATA.joinpath(*parts))
    if _OTHER_ADDRESS.match(path):
        raise ValueError(f"download it and give its path; {HUB_PREFIX}owner/name is a data set of the hub")
    return absolute_path(path)


def column_names(columns: dict[str, str]) -> dict[str, str]:
    """Check a renaming of columns.

    Args:
        columns: the format's key -> the file's own name for it.

    Returns:
        The same.

    Raises:
        ValueError: a name is empty, or two keys are to be read from one column.
    """
    if not all(columns) or not all(columns.values()):
        raise ValueError("give names that are not empty, as {instruction: question, output: answer}")
    if len(set(columns.values())) < len(columns):
        raise ValueError("read each of the file's columns once: two keys have the same one")
    return columns


def template_name(name: str) -> str:
    """Check a chat template's name.

    Args:
        name: a name, or the path of a file that ends in .jinja.

    Returns:
        The name as it is, or the path made absolute.
    """
    return absolute_path(name) if name.endswith(TEMPLATE_SUFFIX) else name


def model_path(name: str) -> str:
    """Make it absolute unless it can only be a name on the hub (`owner/name`, nothing there on disk).

    Args:
        name: a model's folder or name.

    Returns:
        The absolute path, or the name.
    """
    is_path = name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1
    return absolute_path(name) if is_path or os.path.exists(name) else name


def resume_from(value: str) -> str:
    """Make a checkpoint's path absolute.

    Args:
        value: a path, or `auto`.

    Returns:
        The absolute path, or `auto`.
    """
    return value if value == "auto" else absolute_path(value)


def val_size(value: Any) -> float | int:
    """Check how many rows are kept aside.

    Args:
        value: anything.

    Returns:
        0, a share below 1, or a whole number of rows.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_COUNT:
        raise ValueError("give 0 (no validation), a share below 1, or a whole number of rows")
    if isinstance(value, float) and value >= 1:
        raise ValueError(
            "from 1 on it counts rows: give a whole number, without a decimal point, or a share below 1"
        )
    return value


def warmup_steps(value: float) -> float:
    """Check the length of the warm-up.

    Args:
        value: a number that is not negative.

    Returns:
        The same: a share below 1, or a whole number of steps.

    Raises:
        ValueError: a fraction of a step.
    """
    if value >= 1 and value != int(value):
        raise ValueError("from 1 on it counts steps: give a whole number, or a share of all steps below 1")
    return value


def target_modules(value: Any) -> str | list[str]:
    """Check which layers get an adapter.

    Args:
        value: anything.

    Returns:
        `all-linear`, or a list of different names.

    Raises:
        ValueError: it is something else.
    """
    if value == "all-linear":
        return value
    is_list = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    if not is_list or len(set(value)) != len(value):
        raise ValueError("give all-linear, or a list of different module names, as [q_proj, v_proj]")
    return value


def model_config(value: Any) -> str | dict[str, Any]:
    """Check the shape of a model to begin.

    Args:
        value: anything.

    Returns:
        The absolute path of a folder, or the keys of a config.json.

    Raises:
        ValueError: it is neither, or holds a number that is not finite.
    """
    if isinstance(value, str) and value:
        return absolute_path(value)
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise ValueError(
            "give a folder with a config.json, or its keys as a mapping with model_type: qwen3, say"
        )
    if not _is_finite(value):
        raise ValueError("give finite numbers in it")
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(_is_finite(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
