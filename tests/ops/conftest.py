"""The `backend` of the operations' tests; see tests/backends.py."""

from __future__ import annotations

import pytest
from backends import CPU, GPU, Backend, backend_params


@pytest.fixture(params=backend_params())
def backend(request):
    if not request.param.startswith("emulated"):
        return {"cpu": CPU, "cuda": GPU}[request.param]
    kernels = request.getfixturevalue("emulated_ops")
    if request.param != "emulated":
        kernels.set_seed(int(request.param.removeprefix("emulated_seed")))
    return Backend("emulated", "cpu", kernels)
