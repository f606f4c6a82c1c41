"""Find what a run left behind: a run, one of its stages, a checkpoint, or any Hugging Face folder.

    run/                          config.yaml with `stages`       -> the last stage that is finished
      sft/                        config.yaml, finished.json      -> the result in it
        checkpoint-40/            weights only                    -> itself, settings from the folder above
    adapter/                      adapter_config.json             -> itself on the base it names
    model/                        config.json                     -> itself

Nothing is written or loaded here, and torch is not needed to tell what is missing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pyft.errors import ConfigError
from pyft.run import layout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run produced and the settings it was trained with.

    Attributes:
        folder: where the weights are.
        base: the model that an adapter belongs to; None when the folder holds a whole model.
        tokenizer: folder of the tokenizer.
        mode: what it was trained in; None when no run says so.
        template: name of the chat template; None is the tokenizer's own.
        system: system text of the questions asked during training, else the default one of the data.
        dtype: name of the compute dtype; None is the stored one.
        quantization: of the base.
        double_quant: of the base.
        trust_remote_code: whether the run allowed code in the model's folder.
    """

    folder: Path
    base: Path | None
    tokenizer: Path
    mode: str | None = None
    template: str | None = None
    system: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    double_quant: bool = True
    trust_remote_code: bool = False


def find_result(path: str | Path) -> Result:
    """Find the weights and settings of a run, a stage, a checkpoint, an adapter or a model folder.

    Where nothing is that could be loaded, a ConfigError says what is.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise ConfigError(
            f"no such folder ({folder}): give a run's output_dir, a checkpoint or a model folder"
        )
    if (folder / layout.CONFIG).is_file():
        settings = _read_config(folder / layout.CONFIG)
        if "stages" in settings:
            return _of_stage(*_last_finished(folder, settings))
        return _of_stage(folder, settings)
    if layout.checkpoint_step(folder) is not None and (folder.parent / layout.CONFIG).is_file():
        return _describe(folder, _read_config(folder.parent / layout.CONFIG), folder.parent)
    if _holds_weights(folder):
        return _describe(folder, {}, folder)
    raise ConfigError(
        f"no run and no model ({folder}): expects {layout.CONFIG}, {layout.ADAPTER_CONFIG} or "
        f"{layout.MODEL_CONFIG}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Read a mapping in YAML, of which JSON is a part."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the settings cannot be read ({path}): {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the settings are not a mapping ({path})")
    return content


def _last_finished(run: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Folder and settings of the last finished stage of a run."""
    names = [
        stage.get("name") or stage.get("mode") for stage in settings["stages"] if isinstance(stage, dict)
    ]
    for name in reversed(names):
        folder = run / str(name)
        if (folder / layout.FINISHED).is_file() and (folder / layout.CONFIG).is_file():
            return folder, _read_config(folder / layout.CONFIG)
    begun = [run / str(name) for name in names if (run / str(name)).is_dir()]
    usable = [latest for folder in begun if (latest := _latest_checkpoint(folder)) is not None]
    fix = f"give a checkpoint, such as {usable[-1]}" if usable else "train it first"
    raise ConfigError(f"no stage of the run is finished ({run}; stages: {', '.join(map(str, names))}): {fix}")


def _of_stage(folder: Path, settings: dict[str, Any]) -> Result:
    if not (folder / layout.FINISHED).is_file() or not _holds_weights(folder):
        latest = _latest_checkpoint(folder)
        fix = f"give a checkpoint, such as {latest}" if latest else "train it first"
        raise ConfigError(f"the run is not finished ({folder}): {fix}")
    return _describe(folder, settings, folder)


def _latest_checkpoint(folder: Path) -> Path | None:
    usable = [path for _, path in layout.list_checkpoints(folder) if _holds_weights(path)]
    return usable[-1] if usable else None


def _holds_weights(folder: Path) -> bool:
    return (folder / layout.ADAPTER_CONFIG).is_file() or (folder / layout.MODEL_CONFIG).is_file()


def _describe(folder: Path, settings: dict[str, Any], run: Path) -> Result:
    """Gather what a folder of weights and its run's settings say."""
    if not _holds_weights(folder):
        raise ConfigError(f"no weights ({folder}): expects {layout.ADAPTER_CONFIG} or {layout.MODEL_CONFIG}")
    model, data, train = (settings.get(section) or {} for section in ("model", "data", "train"))
    base = None
    if (folder / layout.ADAPTER_CONFIG).is_file():
        adapter = _read_config(folder / layout.ADAPTER_CONFIG)
        named = model.get("name_or_path") or adapter.get("base_model_name_or_path")
        base = _base_folder(named, folder, run)
    tokenizer = next(
        (place for place in (folder, run, base) if place is not None and holds_tokenizer(place)), folder
    )
    return Result(
        folder=folder,
        base=base,
        tokenizer=tokenizer,
        mode=settings.get("mode"),
        template=model.get("template"),
        system=train.get("evaluation_system") or data.get("system"),
        dtype=model.get("dtype"),
        quantization=model.get("quantization"),
        double_quant=model.get("double_quant", True),
        trust_remote_code=model.get("trust_remote_code", False),
    )


def _base_folder(named: str | None, folder: Path, run: Path) -> Path:
    """Find the adapter's base; a run moved as a whole has an earlier stage's result beside it."""
    if not named:
        raise ConfigError(f"the adapter does not name its base model ({folder / layout.ADAPTER_CONFIG})")
    base = Path(named)
    if base.is_dir():
        return base
    for beside in (run.parent / base.name, run.parent / base.parent.name / base.name):
        if (beside / layout.MODEL_CONFIG).is_file():
            logger.warning("the base %s is gone; taking %s beside the run", base, beside)
            return beside
    raise ConfigError(
        f"the adapter's base model is not there ({base}): put it back, or train again from where it is"
    )


def holds_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer's files."""
    return any((folder / name).is_file() for name in layout.TOKENIZER_FILES)
