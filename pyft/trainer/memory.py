"""Running out of memory, recognised in the ways torch and Python say it, and told with what was asked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from pyft.errors import OutOfMemory

# torch's CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory: you tried to
# allocate 17592186044416 bytes"; some CUDA libraries say "out of memory" in one.
_TEXT = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


@contextlib.contextmanager
def memory_errors(doing: Callable[[], str]) -> Iterator[None]:
    """Raise an OutOfMemory, as `out_of_memory` makes it, for each error of memory in the block."""
    try:
        yield
    except Exception as error:
        if found := out_of_memory(error, doing()):
            raise found from error
        raise


def out_of_memory(error: BaseException, doing: str) -> OutOfMemory | None:
    """Turn an error into an OutOfMemory where memory is what failed.

    Args:
        error: what was raised.
        doing: what was being done, for the message.

    Returns:
        The error to raise, or None when `error` is of another kind.
    """
    is_one = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not is_one and not (isinstance(error, RuntimeError) and _TEXT.search(str(error))):
        return None
    asked = _ASKED.search(str(error))
    return OutOfMemory(
        f"out of memory{f', {asked[1]} more were asked for' if asked else ''} ({doing}): lower "
        "train.per_device_train_batch_size or data.max_length, or set train.gradient_checkpointing: true"
    )
