"""Who imports whom: the rules hold for the source tree, and the checker sees a breach of each of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from layering import COMMANDS, HEAVY, heavy_imports, re_exports, read_tree, violations

PACKAGE = Path(__file__).resolve().parents[1] / "pyft"
MODULES = read_tree(PACKAGE)


def test_the_rules_hold() -> None:
    assert violations(MODULES) == []


def test_package_files_hold_a_docstring_only() -> None:
    for path in sorted(PACKAGE.rglob("__init__.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        is_docstring = [isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body]
        if path.parent == PACKAGE:
            assert all(isinstance(node, ast.Assign) for node in body[1:]), path
        else:
            assert is_docstring == [True], path


def test_a_name_has_one_address() -> None:
    """What a module took from another is imported from where it is defined, never passed on."""
    passed_on = re_exports(PACKAGE, [PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent / "bench"])
    assert passed_on == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if f"pyft.{name}" in MODULES])
def test_commands_load_nothing_heavy(command: str) -> None:
    """The same as the rule above, asked of Python itself."""
    script = (
        f"import sys, importlib; importlib.import_module('pyft.{command}'); "
        f"print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


SOUND = {
    "pyft/__init__.py": '"""pyft."""',
    "pyft/config/__init__.py": "",
    "pyft/config/load.py": "import yaml",
    "pyft/ops/__init__.py": "",
    "pyft/ops/native.py": "import torch\nimport _pyft_C",
    "pyft/ops/nf4.py": "import torch\nfrom pyft.ops import native",
    "pyft/data/__init__.py": "",
    "pyft/data/batches/collate.py": "import torch",
    "pyft/data/rows/row.py": "",
    "pyft/data/rows/formats.py": "from pyft.data.reading import hub\nfrom pyft.data.rows import row",
    "pyft/data/reading/hub.py": "def read():\n    import datasets",
    "pyft/data/tokenizers/load.py": "def load():\n    import transformers",
    "pyft/data/chat/bind.py": "from pyft.config import load",
    "pyft/data/__main__.py": (
        "from pyft.config import load\ndef main():\n    from pyft.data.batches import collate"
    ),
    "pyft/model/__init__.py": "",
    "pyft/model/load.py": "import transformers\nfrom pyft.ops.nf4 import f",
    "pyft/run/__init__.py": "",
    "pyft/run/resume.py": "from pyft.config import load",
    "pyft/data/show/ledger.py": "",
    "pyft/tasks/__init__.py": "",
    "pyft/tasks/sft.py": (
        "from pyft.config import load\nfrom pyft.data.chat.bind import t\nfrom pyft.model.heads import h"
    ),
    "pyft/model/heads.py": "",
    "pyft/trainer/__init__.py": "",
    "pyft/trainer/loop.py": (
        "from typing import TYPE_CHECKING\nfrom pyft.config import load\n"
        "if TYPE_CHECKING:\n    from pyft.data.batches.collate import Batch\n"
        "    from pyft.tasks.sft import Sft"
    ),
    "pyft/chat.py": "def main():\n    from pyft.model import load\n    from pyft.data.chat.bind import t",
    "pyft/train.py": "def main():\n    from pyft import stages",
    "pyft/stages.py": "import torch\nfrom pyft.trainer.loop import T\nfrom pyft.data.batches import collate",
}


def plant(folder: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return violations(read_tree(folder / "pyft"))


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    assert plant(tmp_path, SOUND) == []


@pytest.mark.parametrize(
    ("module", "text", "breach"),
    [
        ("config/load.py", "from pyft.data.batches.collate import Batch", "imports data.batches.collate"),
        ("config/load.py", "def f():\n    import pyft.ops.nf4", "imports ops.nf4"),
        ("config/load.py", "import torch", "loads torch"),
        ("errors.py", "from pyft.config.load import load", "imports config.load"),
        ("data/reading/hub.py", "from pyft.data.rows import formats", "imports data.rows.formats"),
        ("data/batches/collate.py", "from pyft.data.show import ledger", "imports data.show"),
        ("data/rows/row.py", "from pyft.data.rows import formats", "import each other"),
        ("run/resume.py", "from pyft.trainer.loop import T", "imports trainer.loop"),
        ("model/load.py", "from pyft.data.rows.formats import x", "imports data.rows.formats"),
        ("config/load.py", "from ..ops import nf4", "imports ops.nf4"),
        ("config/load.py", "try:\n    import torch\nexcept ImportError:\n    pass", "loads torch"),
        ("config/load.py", "class C:\n    import torch.nn as nn", "loads torch"),
        ("config/load.py", "import importlib\nimportlib.import_module('torch')", "loads torch"),
        ("data/batches/collate.py", "from pyft.model.load import x", "imports model.load"),
        ("data/batches/collate.py", "from pyft.ops import nf4", "imports ops.nf4"),
        ("data/batches/collate.py", "import datasets", "imports datasets"),
        ("data/batches/collate.py", "def f():\n    from datasets import load_dataset", "imports datasets"),
        ("data/batches/collate.py", "import transformers", "imports transformers"),
        ("ops/nf4.py", "import _pyft_C", "imports _pyft_C"),
        ("ops/nf4.py", "def f():\n    import _pyft_C", "imports _pyft_C"),
        ("ops/nf4.py", "from transformers import AutoModel", "imports transformers"),
        ("ops/nf4.py", "from pyft.config import load", "imports config"),
        ("model/load.py", "from pyft.data.chat.bind import t", "imports data.chat.bind"),
        ("model/load.py", "from pyft.trainer import loop", "imports trainer.loop"),
        ("trainer/loop.py", "from pyft.model import load", "imports model.load"),
        ("trainer/loop.py", "from pyft.data.batches.collate import Batch", "imports data.batches.collate"),
        (
            "trainer/loop.py",
            "def f():\n    from pyft.data.rows.formats import x",
            "imports data.rows.formats",
        ),
        (
            "trainer/loop.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyft.data.rows.formats import Row",
            "imports data.rows.formats",
        ),
        ("trainer/loop.py", "import transformers", "imports transformers"),
        (
            "stages.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import AutoModel",
            "imports transformers",
        ),
        ("tasks/sft.py", "from pyft.trainer.loop import T", "imports trainer.loop"),
        ("tasks/sft.py", "from pyft.model.load import x", "imports model.load"),
        ("data/prepare.py", "from pyft.tasks.sft import Sft", "imports tasks.sft"),
        ("config/load.py", "def f():\n    from pyft.tasks.sft import Sft", "imports tasks.sft"),
        ("trainer/loop.py", "from pyft.tasks.sft import Sft", "imports tasks.sft"),
        ("chat.py", "def f():\n    from pyft.tasks.sft import Sft", "imports tasks.sft"),
        ("chat.py", "def f():\n    from pyft.data.batches.collate import x", "imports data.batches.collate"),
        ("chat.py", "def f():\n    from pyft.trainer.loop import x", "imports trainer.loop"),
        ("chat.py", "import torch", "loads torch"),
        ("chat.py", "from pyft.model.load import x", "loads transformers"),
        ("model/load.py", "from pyft.train import main", "imports train"),
        ("data/batches/collate.py", "import tests.numerics", "imports tests.numerics"),
        ("train.py", "import pyft.stages", "loads torch"),
        ("train.py", "from pyft.data.batches import collate", "loads torch"),
        ("data/__init__.py", "import torch", "loads torch"),
        ("__init__.py", "import torch", "loads torch"),
    ],
)
def test_each_breach_is_seen(tmp_path: Path, module: str, text: str, breach: str) -> None:
    found = plant(tmp_path, {**SOUND, f"pyft/{module}": text})
    assert any(breach in line for line in found), found


def test_the_trail_is_told(tmp_path: Path) -> None:
    plant(tmp_path, {**SOUND, "pyft/train.py": "import pyft.stages"})
    trails = dict(heavy_imports("pyft.train", read_tree(tmp_path / "pyft")))
    assert trails["torch"][:2] == ["pyft.train", "pyft.stages"]
