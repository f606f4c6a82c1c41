"""run_command: exit codes, error lines, tracebacks, streams (these in processes of their own)."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyft.command import run_command
from pyft.errors import ConfigError, DataError, Interrupted, NumericsError

ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="tool")
    result.add_argument("recipe")
    result.add_argument("overrides", nargs="*")
    result.add_argument("--number", type=int)
    return result


def run(error: BaseException | None, *arguments: str) -> int:
    def main(_: argparse.Namespace) -> None:
        if error is not None:
            raise error

    return run_command(main, parser(), arguments or ["r"])


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (None, 0, []),
        (ConfigError("a (b): c"), 2, ["error: a (b): c"]),
        (DataError(["one", "two"]), 3, ["error: one", "error: two"]),
        (NumericsError("nan"), 6, ["error: nan"]),
        (Interrupted(signal.SIGTERM, "saved"), 143, ["error: saved"]),
        (Interrupted(signal.SIGINT), 130, []),
        (KeyboardInterrupt(), 130, []),
        (MemoryError(), 4, ["error: out of memory"]),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            4,
            ["2 GiB more were asked for"],
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            4,
            ["8 bytes"],
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 4, ["out of memory"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/x"),
            5,
            ["error: No space left on device (/out/x)"],
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/out/x"), 5, ["/out/x"]),
        (OSError(errno.EFBIG, "File too large", "/out/x"), 5, ["/out/x"]),
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), 5, ["/out/x"]),
        (OSError(errno.EROFS, "Read-only file system", "/out/x"), 5, ["/out/x"]),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            5,
            ["No space left on device (os error 28)"],
        ),
        (ValueError("odd"), 1, ["error: internal: ValueError: odd; run again with --debug"]),
        (RuntimeError("shape mismatch"), 1, ["internal: RuntimeError: shape mismatch"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1, ["internal: FileNotFoundError"]),
    ],
)
def test_errors(capsys: Any, error: BaseException | None, code: int, parts: list[str]) -> None:
    assert run(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert len(lines) == (len(parts) if parts else 0)
    assert all(part in err for part in parts)


def test_out_of_memory_names_the_keys(capsys: Any) -> None:
    run(torch.OutOfMemoryError("CUDA out of memory."))
    err = capsys.readouterr().err
    assert all(key in err for key in ("per_device_train_batch_size", "max_length", "gradient_checkpointing"))


def test_debug_adds_the_traceback(capsys: Any) -> None:
    assert run(ConfigError("bad"), "--debug", "r") == 2
    assert "Traceback" in (err := capsys.readouterr().err) and "error: bad" in err.splitlines()
    assert run(ValueError("odd"), "r", "--debug") == 1
    assert (
        "Traceback" in (err := capsys.readouterr().err)
        and "error: internal: ValueError: odd" in err.splitlines()
    )
    assert run(ConfigError("bad")) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_messages_stay_on_one_harmless_line(capsys: Any) -> None:
    run(ConfigError("a\nb\x1b[31m\r\u2028\ud800 世界\u3000é"))
    assert capsys.readouterr().err == "error: a b\\x1b[31m\\r\\u2028\\ud800 世界\u3000é\n"


def test_the_code_of_main_is_kept() -> None:
    assert run_command(lambda _: 7, parser(), ["r"]) == 7


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "recipe"),
        (["r", "--nonsense"], "--nonsense"),
        (["r", "--number", "x"], "--number"),
        (["r", "--train.lr=1"], "without dashes"),
    ],
)
def test_usage_errors(capsys: Any, arguments: list[str], part: str) -> None:
    assert run_command(lambda _: None, parser(), arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and part in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["r", "a=1", "--number", "3", "b=2"],
        ["--number", "3", "r", "a=1", "b=2"],
        ["r", "a=1", "b=2", "--number=3"],
        ["a=1", "r", "b=2", "--number=3"],
        ["a=1", "--number=3", "b=2", "r"],
    ],
)
def test_options_and_overrides_in_any_order(arguments: list[str]) -> None:
    seen: list[argparse.Namespace] = []
    assert run_command(lambda options: seen.append(options), parser(), arguments) == 0
    assert (seen[0].recipe, seen[0].overrides, seen[0].number) == ("r", ["a=1", "b=2"], 3)


def test_help_goes_to_stdout(capsys: Any) -> None:
    assert run_command(lambda _: None, parser(), ["--help"]) == 0
    out, err = capsys.readouterr()
    assert "--debug" in out and err == ""


def script(body: str) -> list[str]:
    start = (
        "import argparse, sys, time\n"
        "from pyft.command import run_command\nfrom pyft.errors import ConfigError\n"
    )
    end = "\nsys.exit(run_command(main, argparse.ArgumentParser()))\n"
    return [sys.executable, "-c", start + body + end]


def environment(**changes: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(ROOT), **changes}


def test_output_appears_as_it_happens() -> None:
    """The process ends without flushing anything: only what was written line by line arrives."""
    body = "import os\ndef main(_):\n    print('first')\n    print('half', end='')\n    os._exit(0)"
    result = subprocess.run(script(body), capture_output=True, text=True, env=environment(), check=True)
    assert result.stdout == "first\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    body = "def main(_):\n    for number in range(200000):\n        print(number)"
    with subprocess.Popen(
        script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141


def test_a_terminal_without_unicode_still_works() -> None:
    body = "def main(_):\n    print('世界')\n    raise ConfigError('世界')"
    result = subprocess.run(
        script(body), capture_output=True, env=environment(PYTHONIOENCODING="ascii"), check=False
    )
    assert result.returncode == 2
    assert result.stdout == b"\\u4e16\\u754c\n" and result.stderr == b"error: \\u4e16\\u754c\n"


def test_interrupt_from_the_keyboard() -> None:
    body = "def main(_):\n    print('ready')\n    time.sleep(60)"
    with subprocess.Popen(
        script(body),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background job, such as this test run may be, hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == ""
    assert child.returncode == 130
