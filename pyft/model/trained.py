"""The weights that training changes, as files: the adapter, or with full fine-tuning the whole model.

One object writes and reads a checkpoint's weights and the result alike, under the same names each time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pyft.errors import ConfigError
from pyft.model.adapter_files import load_adapter_weights, save_adapter
from pyft.model.adapters import adapted_layers
from pyft.model.architecture import untie_names
from pyft.model.save import save_model
from pyft.model.tensor_names import shorten
from pyft.model.weight_files import open_tensors
from pyft.run.layout import MODEL_CONFIG


class TrainedWeights:
    """Writes and reads back what is trained.

    Args:
        model: with adapters attached, or all of it trained.
        dtype: in which a fully trained model is written.
        base: the folder an adapter belongs to; unused with full fine-tuning.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, base: str | None) -> None:
        self._model, self._dtype, self._base = model, dtype, base
        self.is_adapter = bool(adapted_layers(model))

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, or the model as a Hugging Face folder."""
        if self.is_adapter:
            save_adapter(self._model, folder, self._base)
        else:
            save_model(self._model, folder, self._dtype)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place: parameters stay the objects the optimizer knows."""
        if self.is_adapter:
            load_adapter_weights(self._model, folder)
            return
        tensors = open_tensors(folder)
        if tensors is None:
            raise ConfigError(f"no weights in the checkpoint ({folder}): choose another, or start afresh")
        state = self._model.state_dict(keep_vars=True)
        for names in untie_names(self._model).values():
            stored = [name for name in names if name in tensors.files]
            if not stored or tensors.shapes[stored[0]] != tuple(state[names[0]].shape):
                raise ConfigError(
                    f"the checkpoint does not fit the model ({folder}): look at {shorten(names)}; "
                    "choose another, or start afresh"
                )
            state[names[0]].copy_(tensors.read(stored[0]))


def folder_digest(folder: str | Path) -> str:
    """Hash the names and contents of config.json and the files of weights, whatever their times are."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob(MODEL_CONFIG)]):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
