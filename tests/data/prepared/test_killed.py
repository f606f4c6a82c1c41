"""Processes that prepare data: the first mistake is told whoever finds it; a killed one leaves no half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from data_command import GOOD, Command, line
from waiting import SECONDS, wait_until


@pytest.fixture
def command(tmp_path, bpe_folder):
    folder = tmp_path / "我的 data"
    folder.mkdir()
    return Command(folder, bpe_folder)


def start(command: Command, *overrides: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:]), "PYTHONIOENCODING": "utf-8"}
    arguments = [sys.executable, "-m", "pyft.data", *command.arguments(*overrides)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=os.getcwd()
    )


def make_chunks(count: int) -> list[bytes]:
    """Good rows with so many blanks behind them that few make a chunk."""
    return [line(GOOD[i % 3]).ljust(2000) for i in range(count)]


def test_as_a_process_of_its_own_with_workers(command):
    """The first bad record in file order is the one named, whichever worker is done first."""
    rows = make_chunks(2000)
    rows[1200] = rows[1999] = b"oops"
    path = command.write("data.jsonl", b"\n".join(rows))
    process = start(command, "data.num_workers=2")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (3, b"")
    (only,) = err.decode().splitlines()
    assert f"{path}:1201:1: broken JSON" in only
    assert not command.files_left()
    assert not command.output.exists()


def test_a_killed_preparation_leaves_nothing_usable(command, capsys):
    command.write("data.jsonl", b"\n".join(make_chunks(6000)))
    process = start(command, "data.num_workers=0")
    wait_until(lambda: command.files_left() or process.poll() is not None, "files", every_seconds=0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert command.run("--num-samples", "9") == 0
    after_kill = capsys.readouterr().out
    shutil.rmtree(command.cache)
    assert command.run("--num-samples", "9") == 0
    assert capsys.readouterr().out == after_kill
    assert json.loads(after_kill.splitlines()[-1])["ledger"]["rows_read"] == 6000
