"""From a recipe's name and overrides to a checked `Recipe`.

    file ── top level ──┬── merged with stages[0] ── overrides ── Stage ┐
                        └── merged with stages[1] ── overrides ── Stage ┴── Recipe

Every mistake found on the way is kept with its place, and all are raised together.
"""

from __future__ import annotations

import copy
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pyft.config.key_path import COMMAND_LINE, KeyPath, WrittenPlaces, show_path
from pyft.config.mistakes import describe, error_path, explain
from pyft.config.modes import DEFAULT_MODE
from pyft.config.overrides import Override, apply_override, parse_overrides
from pyft.config.schema import CONTRADICTION, Name, Stage, accepts_null
from pyft.config.shipped import find_recipe
from pyft.config.yaml_text import Document, read_document
from pyft.errors import ConfigError

_SECTIONS = ("model", "data", "train")
_FIRST_STAGE_ONLY = ("name_or_path", "config", "from_scratch", "tokenizer")
_FOLDER_NAME = re.compile(r"\w[\w.-]{0,63}")
_OF_THE_RECIPE = ("name", "stages")


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
    """All of it as plain values, overrides and defaults too, paths absolute; loads as an equal Recipe."""


def load_recipe(recipe: str, overrides: list[str]) -> Recipe:
    """Read, merge, override and check a recipe by path or shipped name; ConfigError lists every mistake."""
    source = find_recipe(recipe)
    document = read_document(source)
    if not isinstance(document.data, dict) or not document.data:
        kind = f"is {describe(document.data)}" if document.data else "is empty"
        raise ConfigError(
            f"the recipe {kind} ({source}): write keys, as mode: sft; see python -m pyft.recipes"
        )
    return _Assembly(source, document, overrides).recipe()


class _Assembly:
    """One loading: the parts of the recipe and the mistakes found in them."""

    def __init__(self, source: Path, document: Document, texts: list[str]) -> None:
        self.source = source
        self.overrides, self.problems = parse_overrides(texts)
        self.places = WrittenPlaces(source, document.lines, [item.path for item in self.overrides])
        self.top: dict[str, Any] = copy.deepcopy(document.data)
        self._override_recipe()
        self.name = self._recipe_name(self.top.pop("name", None))
        self.staged = "stages" in self.top
        self.entries = self._stage_entries(self.top.pop("stages", None))

    def recipe(self) -> Recipe:
        plain = self._merged_stages()
        self._name_stages(plain)
        stages = [self._stage(index, stage) for index, stage in enumerate(plain)]
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        built = [stage for stage in stages if stage is not None]
        output_dir = built[0].train.output_dir
        if self.staged:
            built = [_in_own_folder(stage) for stage in built]
        return Recipe(
            self.name, self.source, built, output_dir, self.staged, self._resolved(built, output_dir)
        )

    def _recipe_name(self, name: Any) -> str:
        if name is None:
            return self.source.name.removesuffix(".yaml").removesuffix(".yml")
        if not isinstance(name, str) or "/" in name or "\0" in name or name in ("", ".", ".."):
            self._problem(("name",), f"name is {describe(name)}", "give text that can be a folder's name")
            return "recipe"
        return name

    def _stage_entries(self, entries: Any) -> list[dict[str, Any]]:
        if not self.staged:
            return [{}]
        if not isinstance(entries, list) or not entries:
            fix = "list at least one, as stages: [{mode: sft}], or remove the key"
            self._problem(("stages",), f"stages is {describe(entries)}", fix)
            return []
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                what = f"stages[{index}] is {describe(entry)}"
                self._problem(("stages", index), what, "give a mapping, as {name: sft, mode: sft}")
        return [entry if isinstance(entry, dict) else {} for entry in entries]

    def _merged_stages(self) -> list[dict[str, Any]]:
        """Make each stage one plain mapping: top level, then its entry, then the overrides."""
        merged = [deep_merge(self.top, entry) for entry in self.entries]
        general = [item for item in self.overrides if item.path[0] not in _OF_THE_RECIPE]
        for index, (stage, chosen) in enumerate(zip(merged, _share_out(general, merged), strict=True)):
            self._override(stage, chosen)
            for section in _SECTIONS:
                if stage.get(section) is None:
                    stage[section] = {}
            self._settle(index, stage)
        return merged

    def _settle(self, index: int, stage: dict[str, Any]) -> None:
        """Fill in what depends on the recipe as a whole, and refuse what a stage cannot have of its own."""
        model, data, train = (stage[section] for section in _SECTIONS)
        if isinstance(train, dict) and "output_dir" not in train:
            train["output_dir"] = os.path.join("runs", self.name)
        if isinstance(data, dict) and data.get("validation") and "val_size" not in data:
            data["val_size"] = 0
        entry = self.entries[index]
        if _given(entry, "train", "output_dir") is not None:
            self._refuse_own(
                ("stages", index, "train", "output_dir"),
                "a stage writes into a folder of its own",
                "set train.output_dir at the top level",
            )
        for key in _FIRST_STAGE_ONLY if index > 0 else ():
            if _given(entry, "model", key) not in (None, False):
                self._refuse_own(
                    ("stages", index, "model", key),
                    "a later stage starts from the result of the one before",
                    f"remove it, or move it to stages[0].model.{key}",
                )
            if isinstance(model, dict):
                model.pop(key, None)

    def _name_stages(self, stages: list[dict[str, Any]]) -> None:
        """Write each stage's name into it, after checking that the names can be folders, each its own."""
        names: list[str] = []
        for index, (stage, entry) in enumerate(zip(stages, self.entries, strict=True)):
            name = entry.get("name", stage.get("mode", DEFAULT_MODE))
            path: KeyPath = ("stages", index, "name")
            if (
                not isinstance(name, str)
                or not _FOLDER_NAME.fullmatch(name)
                or name.startswith("checkpoint-")
            ):
                if "name" in entry:
                    fix = "it becomes a folder: use letters, digits, '-', '_' and '.', and no checkpoint-..."
                    self._problem(path, f"{show_path(path)} is {describe(name)}", fix)
                name = f"stage-{index}"
            elif name.casefold() in (other.casefold() for other in names):
                what = f"{show_path(path)} is {name!r}, the name of an earlier stage"
                self._problem(path, what, "give each stage a name of its own (name: ...)")
            stage["name"] = name
            names.append(name)

    def _stage(self, index: int, plain: dict[str, Any]) -> Stage | None:
        stage: Stage | None = None
        try:
            stage = Stage.model_validate(plain)
        except ValidationError as error:
            for detail in sorted(error.errors(include_url=False), key=_contradictions_last):
                path = error_path(detail, plain)
                what, fix = explain(detail, path, self.places.shown(path, index))
                self._problem(path, what, fix, index)
        is_new = _given(plain, "model", "from_scratch") is True
        has_model = index > 0 or is_new or not isinstance(plain["model"], dict)
        if not has_model and _given(plain, "model", "name_or_path") is None:
            fix = "give the model's folder, as model.name_or_path=./Qwen2.5-7B-Instruct"
            self._problem(("model", "name_or_path"), "model.name_or_path is missing", fix, index)
        return stage

    def _resolved(self, stages: list[Stage], output_dir: str) -> dict[str, Any]:
        plain = [stage.model_dump() for stage in stages]
        if not self.staged:
            return {**plain[0], "name": self.name}
        for stage in plain:
            del stage["train"]["output_dir"]
        return {"name": self.name, "train": {"output_dir": output_dir}, "stages": plain}

    def _override_recipe(self) -> None:
        """Apply the overrides of `name` and of single stages, as `stages[1].train.seed=7`."""
        written = self.top.get("stages")
        num_stages = len(written) if isinstance(written, list) else 0
        for item in (item for item in self.overrides if item.path[0] in _OF_THE_RECIPE):
            index = item.path[1] if item.path[0] == "stages" and len(item.path) > 1 else None
            if index is None or (isinstance(index, int) and index < num_stages):
                self._override(self.top, [item])
                continue
            what = f"{show_path(item.path)} is in no stage: the recipe has {num_stages}"
            fix = "leave stages out" if num_stages == 0 else f"the last one is stages[{num_stages - 1}]"
            self.problems.append(f"{what} ({COMMAND_LINE}): {fix}")

    def _override(self, data: dict[str, Any], overrides: list[Override]) -> None:
        for item in overrides:
            try:
                apply_override(data, item.path, item.value)
            except ConfigError as error:
                self.problems += error.messages

    def _refuse_own(self, path: KeyPath, why: str, fix: str) -> None:
        self._problem(path, f"{show_path(path)} is given, but {why}", fix)

    def _problem(self, path: KeyPath, what: str, fix: str, index: int | None = None) -> None:
        self.problems.append(f"{what} ({self.places.where(path, index)}): {fix}")


def deep_merge(base: dict[str, Any], over: dict[str, Any], prefix: Name = ()) -> dict[str, Any]:
    """Lay one plain mapping over another: mappings merge key by key, lists replace, null removes.

    Where null is a value of its own (`max_steps`, `adapter`) it stays; elsewhere the key's default counts.
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


def _contradictions_last(error: ErrorDetails) -> tuple[bool, int]:
    """Order errors as pydantic does, and contradictions after all others, by the section they are in."""
    if error["type"] != CONTRADICTION:
        return False, 0
    return True, list(Stage.model_fields).index(str(error["loc"][0]))


def _share_out(overrides: list[Override], stages: list[dict[str, Any]]) -> list[list[Override]]:
    """Choose each stage's overrides: all, but `adapter.r=8` skips those without one if any has one."""
    some_adapter = any(stage.get("adapter") is not None for stage in stages)

    def applies(item: Override, stage: dict[str, Any]) -> bool:
        inside_adapter = item.path[0] == "adapter" and len(item.path) > 1
        return not (inside_adapter and some_adapter and stage.get("adapter") is None)

    return [[item for item in overrides if applies(item, stage)] for stage in stages]


def _in_own_folder(stage: Stage) -> Stage:
    folder = os.path.join(stage.train.output_dir, stage.name)
    return stage.model_copy(update={"train": stage.train.model_copy(update={"output_dir": folder})})


def _given(entry: dict[str, Any], section: str, key: str) -> Any:
    mapping = entry.get(section)
    return mapping.get(key) if isinstance(mapping, dict) else None
