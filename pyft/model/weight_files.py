"""Read the safetensors files of a model folder one tensor at a time.

A file is mapped anew for every tensor, so that pages already read do not pile up in this process: the
resident peak is what was kept plus one tensor. Headers are checked by safetensors (a cut or corrupt file is
refused).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyft.errors import ConfigError
from pyft.model.architecture import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class TensorFiles:
    """The tensors of a checkpoint: names, shapes, and each one read when asked for.

    Args:
        files: tensor name -> file that holds it.
        shapes: tensor name -> shape.
    """

    def __init__(self, files: dict[str, Path], shapes: dict[str, tuple[int, ...]]) -> None:
        self.files, self.shapes = files, shapes

    def read(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype.

        Args:
            name: of the tensor.

        Returns:
            The tensor, backed by the file until it is let go.

        Raises:
            ConfigError: when the file cannot be read.
        """
        try:
            with safe_open(self.files[name], framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"tensor {name} cannot be read ({self.files[name]}): {error}") from error


def open_tensors(folder: str | Path) -> TensorFiles | None:
    """List the safetensors of a model folder.

    Args:
        folder: with `model.safetensors`, or shards and their index.

    Returns:
        The tensors, or None when the folder has no safetensors (other formats).

    Raises:
        ConfigError: a shard is missing, cut or corrupt, or the index does not fit the shards.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        paths, index = [folder / SINGLE], None
    elif (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "the index of the weights").get("weight_map")
        if not isinstance(index, dict):
            raise ConfigError(f"the index of the weights has no weight_map ({folder / INDEX})")
        paths = [folder / name for name in sorted(set(index.values()))]
        if outside := [str(p) for p in paths if p.parent != folder]:
            raise ConfigError(f"the index of the weights leaves its folder ({folder / INDEX}): {outside[0]}")
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
            f"the index names tensors that no shard holds ({folder / INDEX}): {shorten(absent)}"
        )
    return TensorFiles(files, shapes)


def stored_dtype(folder: str | Path) -> torch.dtype:
    """Tell in which dtype a model folder keeps its weights.

    Args:
        folder: in Hugging Face format.

    Returns:
        The dtype of the largest stored tensor; of `config.json` where there are no safetensors; else float32.
    """
    tensors = open_tensors(folder)
    if tensors is not None and tensors.shapes:
        sizes = {name: torch.Size(shape).numel() for name, shape in tensors.shapes.items()}
        return tensors.read(max(sizes, key=lambda name: sizes[name])).dtype
    content = read_json(Path(folder) / "config.json", "config.json")
    name = content.get("dtype") or content.get("torch_dtype") or "float32"
    return getattr(torch, str(name).removeprefix("torch."), torch.float32)


def shorten(names: list[str], limit: int = 4) -> str:
    """Write a list of names in one line.

    Args:
        names: of tensors or modules.
        limit: how many to spell out.

    Returns:
        The first few, then how many more.
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def layer_free(names: list[str]) -> list[str]:
    """Reduce names to their patterns, layers counted as one.

    Args:
        names: of modules, such as `model.layers.7.mlp.up_proj`.

    Returns:
        Sorted patterns, such as `model.layers.*.mlp.up_proj`.
    """
    return sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names})
