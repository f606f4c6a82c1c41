"""What can be compared with on this machine. A peer that does not import is left out, and said to be."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import pyft

_missing: dict[str, str] = {}


def bitsandbytes() -> ModuleType | None:
    """The bitsandbytes package, or None where it does not import (see `missing`)."""
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        _missing["bitsandbytes"] = str(error).splitlines()[0]
        return None


def trl() -> ModuleType | None:
    """The TRL package, or None where it does not import (see `missing`)."""
    try:
        importlib.import_module("trl.trainer.sft_trainer")
        return importlib.import_module("trl")
    except (ImportError, OSError, RuntimeError) as error:
        _missing["trl"] = str(error).splitlines()[0]
        return None


def peft() -> ModuleType | None:
    """The PEFT package, or None where it or bitsandbytes does not import (see `missing`)."""
    try:
        importlib.import_module("accelerate")  # transformers loads bitsandbytes' layers with it
        return bitsandbytes() and importlib.import_module("peft")
    except (ImportError, OSError, RuntimeError) as error:
        _missing["peft"] = str(error).splitlines()[0]
        return None


def transformers_loss() -> ModuleType | None:
    """transformers' own losses (`transformers.loss.loss_utils`), or None where it does not import."""
    return _import("transformers", "transformers.loss.loss_utils")


def liger() -> ModuleType | None:
    """Liger's functions (`liger_kernel.transformers.functional`), or None where it does not import."""
    return _import("liger-kernel", "liger_kernel.transformers.functional")


def cut_cross_entropy() -> ModuleType | None:
    """Apple's cut-cross-entropy, or None where it does not import."""
    return _import("cut-cross-entropy", "cut_cross_entropy")


def torchao() -> ModuleType | None:
    """torchao's NF4 tensors, or None where it does not import."""
    return _import("torchao", "torchao.quantization.quantize_.workflows.nf4.nf4_tensor")


def _import(name: str, module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        _missing[name] = str(error).splitlines()[0]
        return None


def missing() -> dict[str, str]:
    """Peers asked for and not importable: name -> reason."""
    return dict(_missing)


def versions() -> dict[str, str]:
    """Versions of what takes part, for the results file."""
    found = {"pyft": pyft.__version__}
    for name in (
        "torch",
        "bitsandbytes",
        "cut-cross-entropy",
        "liger-kernel",
        "peft",
        "tokenizers",
        "torchao",
        "transformers",
        "trl",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
