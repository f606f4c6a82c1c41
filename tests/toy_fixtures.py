"""Fixtures of the tests that run toys: quick runs, processes of their own, a run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy import Forge, toy_run


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread for toys, and no loss curve, which takes longer than their runs, where none is asked for."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if "picture" not in request.node.name:
        monkeypatch.setattr("pyft.trainer.record.plot_loss", lambda path, rows: None)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    forge = Forge(tmp_path_factory.mktemp("forge"))
    yield forge
    forge.close()


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed. Not to be written into."""
    folder = tmp_path_factory.mktemp("straight")
    toy_run(folder)
    return folder
