"""Real signals to a real run that is preparing its data."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from waiting import SECONDS, wait_until


@pytest.fixture
def start(tmp_path, bpe_folder):
    """Start a run whose data take a while, in a process group of its own, and wait until they are begun."""
    rng = random.Random(0)
    words = ["the", "mountain", "is", "high", "and", "a", "river", "runs", "deep"]
    row = {"instruction": "q", "output": " ".join(rng.choices(words, k=400))}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 40_000)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {
        "mode": "sft",
        "model": {
            "from_scratch": True,
            "config": {"model_type": "llama"} | shape,
            "tokenizer": str(bpe_folder),
            "template": "chatml",
        },
        "data": {"train": [{"path": str(tmp_path / "data.jsonl")}], "cache_dir": str(tmp_path / "cache")},
        "train": {"output_dir": str(tmp_path / "run")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    processes = []

    def start(num_workers: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "pyft.train", str(tmp_path / "recipe.yaml")]
        process = subprocess.Popen(
            [*command, f"data.num_workers={num_workers}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])},
            start_new_session=True,
        )
        processes.append(process)
        written = tmp_path / "cache" / "data"

        def begun() -> bool:
            assert process.poll() is None, process.communicate()
            return bool(list(written.glob(".*/input_ids.int32")))

        wait_until(begun, "prepared samples")
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_signal_to_all_processes_ends_them_and_leaves_nothing(start, tmp_path, number, num_workers):
    process = start(num_workers)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
    assert "error:" not in err and "Traceback" not in err and "Traceback" not in out
    assert os.listdir(tmp_path / "cache" / "data") == []
    # multiprocessing's own tracker of resources sees a moment later that it is alone.
    wait_until(lambda: not group_exists(process.pid), "the end of the last process")


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
