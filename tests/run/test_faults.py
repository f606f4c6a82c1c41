"""Faults: what is asked for strikes, and nothing else."""

from __future__ import annotations

import pytest

from pyft.errors import ConfigError
from pyft.run.faults import Faults


def test_faults():
    faults = Faults("nan_grad@3, oom@2,nan_grad@7")
    assert faults.strikes("nan_grad", 3) and faults.strikes("nan_grad", 7) and faults.strikes("oom", 2)
    assert not faults.strikes("oom", 3) and not Faults("").strikes("oom", 2)


@pytest.mark.parametrize("text", ["nan_grad", "nan_grad@x", "nan_grad@-1", "flood@3"])
def test_unknown_faults_are_refused(text):
    with pytest.raises(ConfigError, match="PYFT_FAULT"):
        Faults(text)
