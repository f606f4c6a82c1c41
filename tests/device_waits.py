"""What of a computation would wait for a device, were it on one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)


class Waits(TorchDispatchMode):
    """Counts in `seen` where a tensor's values are asked for by Python, as by item() and bool()."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in _WAITING:
            self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))
