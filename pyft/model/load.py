"""Load any transformers causal language model from a local folder, quantising on the way.

The modules are built without memory for their weights (`architecture.empty_model`); the safetensors are then
read one tensor at a time, rounded to the compute dtype, checked for NaN and infinity, quantised where the
layer is to be NF4, and put in place. The host never holds more than what stays plus one tensor. Folders
whose tensor names need transformers' own conversion, or that have only .bin files, go through
`from_pretrained` and are quantised layer by layer afterwards; that is said in one line.

Left out: reading weights that are already quantised.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from pyft.errors import ConfigError, NumericsError, first_line
from pyft.model.architecture import empty_model, quiet_transformers, read_config, untie_names
from pyft.model.attention import register_packed_attention
from pyft.model.layers.fused import fuse_activations
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module
from pyft.model.quantize import quantize_linears
from pyft.model.tensor_names import shorten
from pyft.model.weight_files import TensorFiles, open_tensors
from pyft.run.layout import GENERATION_CONFIG

logger = logging.getLogger(__name__)

# Buffers that older checkpoints hold and current models compute: nothing is lost by passing over them.
_COMPUTED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.attn\.(bias|masked_bias)$")


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    quantization: str | None = None,
    double_quant: bool = True,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model. A stored tensor with NaN or infinity is a NumericsError that names it.

    Args:
        path: local folder in Hugging Face format.
        dtype: of all weights that are not quantised; a stored weight is rounded to it before it is quantised.
        quantization: "nf4" stores every linear layer but the output head in 4 bits; None keeps all dense.
        double_quant: store NF4's absmax itself in 8 bits.
        device: where the model goes.
        trust_remote_code: allow Python code shipped in the folder to run.

    Returns:
        The model in evaluation mode, with pyft's packed attention and fused activations.

    Raises:
        ConfigError: an unusable folder, missing, unexpected or misshapen tensors.
    """
    if quantization not in (None, "nf4"):
        raise ConfigError(f"unknown quantization {quantization!r} (model.quantization): nf4 or null")
    config = read_config(path, trust_remote_code=trust_remote_code)
    model = empty_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    tensors = open_tensors(path)
    groups = untie_names(model)
    if tensors is None:
        _need_other_weights(Path(path))
        why = "it has no safetensors files"
    else:
        why = _why_not_streamed(model, groups, tensors)
    if why is None:
        _stream(model, groups, tensors, dtype, quantization, double_quant, device)
    else:
        logger.warning("%s is loaded whole by transformers, which needs more memory: %s", path, why)
        model = _load_whole(path, dtype, trust_remote_code)
        if quantization is not None:
            quantize_linears(model, double_quant=double_quant, device=device)
    if quantization is not None and (fused := [n for n, p in model.named_parameters() if p.ndim == 3]):
        logger.warning("kept in %s, as NF4 covers linear layers only: %s", dtype, shorten(fused))
    model = model.to(device)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise ConfigError(f"the architecture leaves tensors without a value ({path}): {shorten(left)}")
    model.generation_config = _generation_config(Path(path), config)
    fuse_activations(model)
    return model.eval()


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; an architecture without such a switch is a ConfigError."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{type(model).__name__} cannot recompute activations: set train.gradient_checkpointing=false"
        )
    # transformers 5.23 renamed the switch and warns at the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _need_other_weights(folder: Path) -> None:
    if not any(folder.glob("*.bin")):
        raise ConfigError(
            f"no weights in the model folder ({folder}): expects model.safetensors or its shards"
        )


def _ignorable(model: nn.Module, name: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return bool(_COMPUTED.search(name)) or any(re.search(pattern, name) for pattern in patterns)


def _why_not_streamed(model: nn.Module, groups: dict[str, list[str]], tensors: TensorFiles) -> str | None:
    """Compare names and shapes with the files; None when every tensor can be put where its name says."""
    expected = {name for names in groups.values() for name in names}
    missing = [first for first, names in groups.items() if not any(name in tensors.files for name in names)]
    surplus = [name for name in tensors.files if name not in expected and not _ignorable(model, name)]
    if missing or surplus:
        return f"its tensor names do not fit ({shorten((missing or surplus), 1)})"
    state = model.state_dict(keep_vars=True)
    for name, shape in tensors.shapes.items():
        if name in expected and tuple(state[name].shape) != shape:
            raise ConfigError(
                f"tensor {name} has shape {list(shape)}, config.json asks for {list(state[name].shape)} "
                f"({tensors.files[name]})"
            )
    return None


def _stream(
    model: PreTrainedModel,
    groups: dict[str, list[str]],
    tensors: TensorFiles,
    dtype: torch.dtype,
    quantization: str | None,
    double_quant: bool,
    device: str | torch.device,
) -> None:
    """Fill the model from the files, one tensor at a time."""
    skipped = [name for name in tensors.files if all(name not in names for names in groups.values())]
    if skipped:
        logger.warning("computed by the model, so not read from its files: %s", shorten(skipped))
    to_quantize: set[str] = set()
    if quantization is not None:
        # A weight that several layers share stays dense: each layer would hold a copy of its codes.
        to_quantize = {name for name in linear_names(model) if len(groups.get(f"{name}.weight", ())) == 1}
        for name in to_quantize:
            linear = model.get_submodule(name)
            layer = NF4Linear(linear.in_features, linear.out_features, linear.bias, double_quant=double_quant)
            replace_module(model, name, layer)
    for names in groups.values():
        stored = [name for name in names if name in tensors.files]
        tensor = _checked(tensors, stored[0])
        owner, _, leaf = names[0].rpartition(".")
        if owner in to_quantize and leaf == "weight":
            model.get_submodule(owner).quantize_(tensor.to(device).to(dtype))
            continue
        for other in stored[1:]:
            if not torch.equal(tensor, tensors.read(other)):
                raise ConfigError(
                    f"config.json ties {stored[0]} and {other}, but the files hold different values "
                    f"({tensors.files[other]}): set tie_word_embeddings to false in config.json"
                )
        _place(model, names, tensor, dtype, device)


def _is_finite(tensor: Tensor) -> bool:
    """Look for NaN and infinity without a copy: the least and the greatest value show both."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    least, greatest = torch.aminmax(tensor)
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def _checked(tensors: TensorFiles, name: str) -> Tensor:
    tensor = tensors.read(name)
    if not _is_finite(tensor):
        raise NumericsError(
            f"tensor {name} holds NaN or infinity ({tensors.files[name]}): damaged, copy the model again"
        )
    return tensor


def _place(
    model: nn.Module, names: list[str], tensor: Tensor, dtype: torch.dtype, device: str | torch.device
) -> None:
    """Put one tensor under all its (tied) names; it gets memory of its own, apart from the file."""
    value: Tensor | None = None
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        old = getattr(owner, leaf)
        if value is None:
            wanted = dtype if isinstance(old, nn.Parameter) and tensor.is_floating_point() else old.dtype
            value = torch.empty_like(tensor, dtype=wanted, device=device).copy_(tensor)
            if isinstance(old, nn.Parameter):
                value = nn.Parameter(value, requires_grad=value.is_floating_point())
        setattr(owner, leaf, value)


def _load_whole(path: str | os.PathLike[str], dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """Load through transformers, which renames and converts; refuse what it could not match."""
    quiet_transformers()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            attn_implementation=register_packed_attention(),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"the weights cannot be loaded ({path}): {first_line(error)}") from error
    problems = []
    for kind, names in (("missing", info["missing_keys"]), ("unexpected", info["unexpected_keys"])):
        names = sorted(name for name in names if not _ignorable(model, name))
        if names:
            problems.append(f"{kind} tensors in the weights ({path}): {shorten(names)}")
    if mismatched := info.get("mismatched_keys"):
        problems.append(
            f"tensors of another shape than in config.json ({path}): {shorten(sorted(map(str, mismatched)))}"
        )
    if problems:
        raise ConfigError(problems)
    for name, tensor in model.state_dict().items():
        if not _is_finite(tensor):
            raise NumericsError(
                f"tensor {name} holds NaN or infinity ({path}): damaged, copy the model again"
            )
    return model


def _generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """Read the folder's generation_config.json, else take what config.json says about special tokens."""
    if (folder / GENERATION_CONFIG).is_file():
        try:
            return GenerationConfig.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{GENERATION_CONFIG} cannot be read ({folder}): {error}") from error
    ids = ("eos_token_id", "bos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(config, name, None) for name in ids})
