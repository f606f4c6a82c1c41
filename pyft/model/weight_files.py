"""The files of weights: safetensors, read one tensor at a time, and written with the mode the umask gives.

A file is mapped again for every tensor, so that pages already read do not pile up in this process: the
resident peak is what was kept plus one tensor. Headers are checked by safetensors (a cut or corrupt file is
refused). A link in the way of a file to be written is replaced, never followed.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyft.disk import system_errno, umask_mode
from pyft.errors import ConfigError
from pyft.model.architecture import read_json
from pyft.model.tensor_names import shorten
from pyft.run.layout import MODEL_CONFIG, WEIGHTS, WEIGHTS_INDEX


class TensorFiles:
    """The tensors of a checkpoint: names, shapes, and each one read when asked for.

    Args:
        files: tensor name -> file that holds it.
        shapes: tensor name -> shape.
    """

    def __init__(self, files: dict[str, Path], shapes: dict[str, tuple[int, ...]]) -> None:
        self.files, self.shapes = files, shapes

    def read(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype, backed by the file until it is let go."""
        try:
            with safe_open(self.files[name], framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"tensor {name} cannot be read ({self.files[name]}): {error}") from error


def open_tensors(folder: str | Path) -> TensorFiles | None:
    """List the tensors in a model folder's `model.safetensors` or shards; None where it has neither.

    A shard that is missing, cut or corrupt, and an index that does not fit the shards are a ConfigError.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        paths, index = [folder / WEIGHTS], None
    elif (folder / WEIGHTS_INDEX).is_file():
        index = read_json(folder / WEIGHTS_INDEX, "the index of the weights").get("weight_map")
        if not isinstance(index, dict):
            raise ConfigError(f"the index of the weights has no weight_map ({folder / WEIGHTS_INDEX})")
        paths = [folder / name for name in sorted(set(index.values()))]
        if outside := [str(p) for p in paths if p.parent != folder]:
            raise ConfigError(
                f"the index of the weights leaves its folder ({folder / WEIGHTS_INDEX}): {outside[0]}"
            )
    else:
        return None
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"a file of the weights is missing ({path}): copy the model again")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"the weights are cut short or corrupt ({path}): copy the file again ({error})"
            ) from error
    if index is not None and (absent := sorted(set(index) - set(files))):
        raise ConfigError(
            f"the index names tensors that no shard holds ({folder / WEIGHTS_INDEX}): {shorten(absent)}"
        )
    return TensorFiles(files, shapes)


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write contiguous tensors; a full disk, or a folder that cannot be written, is an OSError."""
    path.unlink(missing_ok=True)
    try:
        save_file(state, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = system_errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(umask_mode(path.parent))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def stored_dtype(folder: str | Path) -> torch.dtype:
    """Tell in which dtype a model folder keeps its weights.

    It is that of the largest stored tensor; of `config.json` where there are no safetensors; else float32.
    """
    tensors = open_tensors(folder)
    if tensors is not None and tensors.shapes:
        sizes = {name: torch.Size(shape).numel() for name, shape in tensors.shapes.items()}
        return tensors.read(max(sizes, key=lambda name: sizes[name])).dtype
    content = read_json(Path(folder) / MODEL_CONFIG, MODEL_CONFIG)
    name = content.get("dtype") or content.get("torch_dtype") or "float32"
    return getattr(torch, str(name).removeprefix("torch."), torch.float32)
