"""`python -m pyft.env`: what is installed, what was built, what this machine has; one `key: value` a line.

Made to be pasted into a bug report. A part that is missing or does not load is said in its own line; the
command still succeeds. Left out: anything that names the user or the machine.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from pyft import __version__
from pyft.command import run_command
from pyft.cpus import num_usable_cpus

PACKAGES = (
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "pydantic",
    "PyYAML",
    "jinja2",
    "peft",
    "bitsandbytes",
)


def package_version(name: str) -> str:
    """Read the version of an installed distribution without importing it, or say "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> Iterator[tuple[str, str]]:
    """Yield everything there is to say, as keys and values."""
    yield "pyft", __version__
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "cpus usable", str(num_usable_cpus())
    yield "torch", package_version("torch")
    for name in PACKAGES:
        yield name, package_version(name)
    yield from describe_native()


def describe_native() -> Iterator[tuple[str, str]]:
    """Yield what the compiled module says of itself and of the machine, or why it does not load."""
    try:
        native = importlib.import_module("pyft.ops.native")
    except ImportError as error:
        yield "native module", str(error)
        return
    compiled = native.C
    yield "torch threads", str(native.num_threads())
    yield "native module", f"{compiled.__version__}, built by {compiled.compiler}"
    yield "instruction sets built", ", ".join(compiled.built_cpu_isas())
    yield "instruction sets usable here", ", ".join(compiled.supported_cpu_isas())
    try:
        yield "instruction set picked", compiled.cpu_isa()
    except RuntimeError as error:
        yield "instruction set picked", f"none: {error}"
    yield from describe_cuda(compiled.cuda_architectures, compiled.cuda_status())


def describe_cuda(architectures: str, status: dict) -> Iterator[tuple[str, str]]:
    """Yield CUDA as built into the module and as found on the machine.

    Args:
        architectures: those the module has code for, "" when it was built for CPU only.
        status: what `cuda_status` of the native module gives.

    Yields:
        Key and value.
    """
    if not architectures:
        yield "CUDA built", "no, CPU only"
    else:
        yield "CUDA built", f"{version_text(status['runtime_version'])} for architectures {architectures}"
    if status["driver_version"]:
        yield "CUDA driver", f"supports CUDA {version_text(status['driver_version'])}"
        if not status["devices"]:
            yield "CUDA devices", f"none: {status['problem']}"
    elif architectures:
        yield "CUDA driver", "not found"
    for index, device in enumerate(status["devices"]):
        major, minor = device["capability"]
        gib = device["memory_bytes"] / 2**30
        yield f"CUDA device {index}", f"{device['name']}, capability {major}.{minor}, {gib:.1f} GiB"


def version_text(number: int) -> str:
    """Write CUDA's number, 1000 * major + 10 * minor, as "major.minor"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def print_environment(_: argparse.Namespace) -> None:
    """Print all lines."""
    for key, value in describe():
        print(f"{key}: {' '.join(value.split())}")


def command_line() -> argparse.ArgumentParser:
    """Describe the command."""
    return argparse.ArgumentParser(
        prog="python -m pyft.env",
        description="Print versions, and what was built and found: put it into a bug report.",
    )


if __name__ == "__main__":
    sys.exit(run_command(print_environment, command_line()))
