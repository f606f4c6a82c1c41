"""pyft without flock, getrusage, sched_getaffinity and SIGUSR1: macOS lacks the third, others all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
from pathlib import Path

import torch  # asks what the real system is
import transformers, datasets, safetensors.torch

sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sched_getaffinity, signal.SIGUSR1
sys.platform = "darwin"

import pyft

names = [module.name for module in pkgutil.walk_packages(pyft.__path__, "pyft.")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")

from pyft.cpus import num_usable_cpus
from pyft.data.prepared.pipeline import choose_num_workers
from pyft.data.reading.source_file import DataFile
from pyft.errors import ConfigError
from pyft.model import peak_memory
from pyft.run.checkpoint import problems, rotate, write_checkpoint
from pyft.run.layout import LOCK, list_checkpoints
from pyft.run.lock import claim_folder
from pyft.trainer.signals import SignalWatch

folder = Path(sys.argv[1])
with claim_folder(folder):
    assert (folder / LOCK).read_text() == f"{os.getpid()}\\n"
    try:
        claim_folder(folder)
    except ConfigError as error:
        assert f"pid {os.getpid()}) is writing there" in str(error), error
    else:
        raise AssertionError("taken twice")
    for step in (1, 2):
        write_checkpoint(folder, step, [lambda staging: (staging / "w").write_text("w")], needed_bytes=1)
    assert [problems(path) for _, path in list_checkpoints(folder)] == [[], []]
    assert [path.name for path in rotate(folder, 1)] == ["checkpoint-1"]
claim_folder(folder).release()

# Left by a process that was killed: its number is in the file, and it runs no more.
gone = os.fork()
if gone == 0:
    os._exit(0)
os.waitpid(gone, 0)
(folder / LOCK).write_text(f"{gone}\\n")
claim_folder(folder).release()
(folder / LOCK).write_text("1\\n")  # another user's, or ours as root: it runs
try:
    claim_folder(folder)
except ConfigError as error:
    assert "pid 1)" in str(error)
else:
    raise AssertionError("taken from a process that runs")

big = [DataFile("x.jsonl", "jsonl", size_bytes=10**9)]
assert num_usable_cpus() == os.cpu_count() and 1 <= choose_num_workers(None, big) <= 8
peak_memory._STATUS = Path("/absent")
assert peak_memory.peak_memory_bytes() == 0
with SignalWatch() as signals:
    assert not signals.wants_something()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.stop_requested()
"""


def test_every_module_and_the_parts_that_ask_the_system(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ELSEWHERE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_a_resident_peak_is_in_bytes_on_macos_and_in_kib_elsewhere(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from pyft.model import peak_memory

    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "absent")
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setattr(peak_memory, "resource", usage)
    for platform, expected in (("darwin", 5000), ("linux", 5000 * 1024)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_memory.peak_memory_bytes() == expected
