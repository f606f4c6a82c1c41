"""From a recipe's name and overrides to a checked `Recipe`: find, read, merge stages, override, validate, resolve.

    file ── top level ──┬── merged with stages[0] ── overrides ── Stage ┐
                        └── merged with stages[1] ── overrides ── Stage ┴── Recipe

Every mistake found on the way is kept with its place, and all are raised together.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pyft.config.contradictions import contradictions
from pyft.config.errors import ConfigError
from pyft.config.explain import describe, error_path, explain
from pyft.config.key_path import KeyPath, show_path
from pyft.config.names import Name, accepts_null
from pyft.config.overrides import COMMAND_LINE, Override, apply_override, parse_overrides
from pyft.config.schema import Stage
from pyft.config.shipped import shipped_recipes
from pyft.config.yaml_text import Document, read_document

_SECTIONS = ("model", "data", "train")
_FIRST_STAGE_ONLY = ("name_or_path", "config", "from_scratch", "tokenizer")
_FOLDER_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Two are equal when they would run the same, wherever they were read from."""

    name: str
    source: Path = field(compare=False)
    stages: list[Stage]
    output_dir: str
    """Absolute; with `stages:` each stage writes into a folder of its name in it."""
    staged: bool
    """Whether the file has `stages:`."""
    resolved: dict[str, Any]
    """Everything as plain values, overrides folded in, defaults written out, paths absolute; loads as an equal Recipe."""


def load_recipe(recipe: str, overrides: list[str]) -> Recipe:
    """Reads, merges, overrides and checks a recipe.

    Args:
        recipe: the path of a file, or the name of a shipped recipe.
        overrides: each `key.sub=value`.

    Returns:
        The recipe.

    Raises:
        ConfigError: with one message per mistake.
    """
    source = find_recipe(recipe)
    document = read_document(source)
    if not isinstance(document.data, dict) or not document.data:
        kind = "is empty" if not document.data else f"holds {describe(document.data)}"
        raise ConfigError(
            f"the recipe {kind} ({source}): write keys, as mode: sft; see python -m pyft.recipes"
        )
    return _Assembly(source, document, overrides).recipe()


def find_recipe(recipe: str) -> Path:
    """Finds a recipe by path or shipped name.

    Args:
        recipe: a shipped name wins over a path without a suffix.

    Returns:
        A path that exists, though possibly a folder.

    Raises:
        ConfigError: there is none; the nearest shipped names are listed.
    """
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    path = Path(recipe).expanduser() if recipe and "\0" not in recipe else None
    if path is not None and os.path.exists(path):
        return path
    stem = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    close = difflib.get_close_matches(stem, shipped, n=1, cutoff=0.6)
    mend = f"did you mean {close[0]}?" if close else "check the path"
    raise ConfigError(f"no such recipe (recipe {recipe}): {mend} Shipped recipes: {', '.join(shipped)}")


class _Assembly:
    """One loading: the parts of the recipe and the mistakes found in them."""

    def __init__(self, source: Path, document: Document, overrides: list[str]) -> None:
        self.source = source
        self.lines = document.lines
        self.problems: list[str] = []
        self.overrides, problems = parse_overrides(overrides)
        self.problems += problems
        self.top: dict[str, Any] = copy.deepcopy(document.data)
        self._override(self.top, [item for item in self.overrides if item.path[0] in ("stages", "name")])
        self.name = self._recipe_name(self.top.pop("name", None))
        self.staged = "stages" in self.top
        self.entries = self._stage_entries(self.top.pop("stages", None))

    def recipe(self) -> Recipe:
        plain = self._merged_stages()
        names = self._stage_names(plain)
        stages = [self._stage(index, stage, names) for index, stage in enumerate(plain)]
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        built = [stage for stage in stages if stage is not None]
        output_dir = built[0].train.output_dir
        if self.staged:
            built = [self._in_own_folder(stage) for stage in built]
        return Recipe(
            self.name, self.source, built, output_dir, self.staged, self._resolved(built, output_dir)
        )

    # ---- parts

    def _recipe_name(self, name: Any) -> str:
        if name is None:
            return self.source.name.removesuffix(".yaml").removesuffix(".yml")
        if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name):
            self._problem(("name",), f"name is {describe(name)}", "use letters, digits, '-', '_' and '.'")
            return "recipe"
        return name

    def _stage_entries(self, entries: Any) -> list[dict[str, Any]]:
        if not self.staged:
            return [{}]
        if not isinstance(entries, list) or not entries:
            mend = "list at least one, as stages: [{mode: sft}], or remove the key"
            self._problem(("stages",), f"stages is {describe(entries)}", mend)
            return []
        kept: list[dict[str, Any]] = []
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                what = f"stages[{index}] is {describe(entry)}"
                self._problem(("stages", index), what, "give a mapping, as {name: sft, mode: sft}")
            kept.append(entry if isinstance(entry, dict) else {})
        return kept

    def _merged_stages(self) -> list[dict[str, Any]]:
        """Gives each stage as one plain mapping: top level, then its entry, then the overrides."""
        merged = [deep_merge(self.top, entry) for entry in self.entries]
        general = [item for item in self.overrides if item.path[0] not in ("stages", "name")]
        for stage, targets in zip(merged, self._targets(merged, general), strict=True):
            self._override(stage, targets)
        for index, stage in enumerate(merged):
            for section in _SECTIONS:
                if stage.get(section) is None:
                    stage[section] = {}
            self._settle(index, stage)
        return merged

    @staticmethod
    def _targets(merged: list[dict[str, Any]], overrides: list[Override]) -> list[list[Override]]:
        """Says which overrides each stage gets: all, but `adapter.x=...` only where there is an adapter, if any has one."""
        some_adapter = any(stage.get("adapter") is not None for stage in merged)

        def applies(item: Override, stage: dict[str, Any]) -> bool:
            inside_adapter = item.path[0] == "adapter" and len(item.path) > 1
            return not (inside_adapter and some_adapter and stage.get("adapter") is None)

        return [[item for item in overrides if applies(item, stage)] for stage in merged]

    def _settle(self, index: int, stage: dict[str, Any]) -> None:
        """Fills in what depends on the recipe as a whole, and refuses what a stage cannot have of its own."""
        model, data, train = (stage[section] for section in _SECTIONS)
        if isinstance(train, dict) and "output_dir" not in train:
            train["output_dir"] = f"runs/{self.name}"
        if isinstance(data, dict) and data.get("validation") and "val_size" not in data:
            data["val_size"] = 0
        if not self.staged:
            stage["name"] = stage.get("mode", "sft")
            return
        entry = self.entries[index]
        if _given(entry, ("train", "output_dir")) is not None:
            path = ("stages", index, "train", "output_dir")
            what = f"{show_path(path)} is given, but a stage writes into a folder of its own"
            self._problem(path, what, "set train.output_dir at the top level")
        if index == 0:
            return
        for key in _FIRST_STAGE_ONLY:
            if _given(entry, ("model", key)) not in (None, False):
                path = ("stages", index, "model", key)
                what = (
                    f"{show_path(path)} is given, but a later stage starts from the result of the one before"
                )
                self._problem(path, what, f"remove it, or move it to stages[0].model.{key}")
            if isinstance(model, dict):
                model.pop(key, None)

    def _stage_names(self, stages: list[dict[str, Any]]) -> list[str]:
        """Checks that the names of stages can be folders, each its own."""
        names: list[str] = []
        if not self.staged:
            return [str(stage["name"]) for stage in stages]
        for index, (stage, entry) in enumerate(zip(stages, self.entries, strict=True)):
            name = entry.get("name", stage.get("mode", "sft"))
            path: KeyPath = ("stages", index, "name")
            if (
                not isinstance(name, str)
                or not _FOLDER_NAME.fullmatch(name)
                or name.startswith("checkpoint-")
            ):
                if "name" in entry:
                    mend = "it becomes a folder: use letters, digits, '-', '_' and '.', and no checkpoint-..."
                    self._problem(path, f"{show_path(path)} is {describe(name)}", mend)
                name = f"stage-{index}"
            elif name.casefold() in (other.casefold() for other in names):
                what = f"{show_path(path)} is {name!r}, the name of an earlier stage"
                self._problem(path, what, "give each stage a name of its own (name: ...)")
            stage["name"] = name
            names.append(name)
        return names

    def _stage(self, index: int, plain: dict[str, Any], names: list[str]) -> Stage | None:
        stage: Stage | None = None
        try:
            stage = Stage.model_validate(plain)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = error_path(detail, plain)
                what, mend = explain(detail, path, self._shown(index, path))
                self._problem(path, what, mend, index)
        for item in contradictions(plain, is_first=index == 0):
            self._problem(item.path, item.what, item.mend, index)
        if stage is not None and index > 0:
            stage._previous = names[index - 1]
        return stage

    @staticmethod
    def _in_own_folder(stage: Stage) -> Stage:
        folder = os.path.join(stage.train.output_dir, stage.name)
        return stage.model_copy(update={"train": stage.train.model_copy(update={"output_dir": folder})})

    def _resolved(self, stages: list[Stage], output_dir: str) -> dict[str, Any]:
        plain = [stage.model_dump() for stage in stages]
        if not self.staged:
            return {"name": self.name, **{key: value for key, value in plain[0].items() if key != "name"}}
        for stage in plain:
            del stage["train"]["output_dir"]
        return {"name": self.name, "train": {"output_dir": output_dir}, "stages": plain}

    # ---- places and problems

    def _override(self, data: dict[str, Any], overrides: list[Override]) -> None:
        for item in overrides:
            try:
                apply_override(data, item.path, item.value)
            except ConfigError as error:
                self.problems += error.messages

    def _shown(self, index: int, path: KeyPath) -> str:
        """Writes a place inside a stage as it stands in the file."""
        own: KeyPath = ("stages", index, *path)
        is_own = own in self.lines or any(item.path[: len(own)] == own for item in self.overrides)
        return show_path(own if is_own else path)

    def _problem(self, path: KeyPath, what: str, mend: str, index: int | None = None) -> None:
        self.problems.append(f"{what} ({self._place(path, index)}): {mend}")

    def _place(self, path: KeyPath, index: int | None) -> str:
        """Finds where a place was written: on the command line, or in a line of the file; else the nearest around it."""
        candidates = [path] if index is None else [("stages", index, *path), path]
        for candidate in candidates:
            if any(candidate[: len(item.path)] == item.path for item in self.overrides):
                return COMMAND_LINE
        for length in range(len(path), 0, -1):
            for candidate in candidates:
                line = self.lines.get(candidate[: len(candidate) - len(path) + length])
                if line is not None:
                    return f"{self.source}:{line}"
        stage = f", stages[{index}]" if self.staged and index is not None else ""
        return f"{self.source}{stage}"


def deep_merge(base: dict[str, Any], over: dict[str, Any], prefix: Name = ()) -> dict[str, Any]:
    """Lays one plain mapping over another.

    Args:
        base: what counts where `over` says nothing.
        over: mappings merge key by key, lists replace, null removes.
        prefix: where in a stage the mappings stand.

    Returns:
        A new mapping that shares nothing with the two.
    """
    merged = copy.deepcopy(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = deep_merge(below, value, (*prefix, key))
        elif value is None and not accepts_null((*prefix, key)):
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _given(entry: dict[str, Any], path: tuple[str, str]) -> Any:
    section = entry.get(path[0])
    return section.get(path[1]) if isinstance(section, dict) else None
