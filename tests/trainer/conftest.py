from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer.toy import Forge, toy_run


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
