from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
from toy import ToyModel, ToySource, greedy, rows, same_run, toy_trainer

from pyft.errors import Interrupted
from pyft.run.checkpoint import problems
from pyft.run.layout import list_checkpoints
from pyft.trainer.signals import SignalWatch

SLOW_MS = 60


def wait_for(path, pattern, timeout=30.0):
    """Wait until a file matches."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if path.exists() and re.search(pattern, path.read_text()):
            return
        time.sleep(0.01)
    raise AssertionError(f"{pattern!r} never came: {path.read_text() if path.exists() else 'no file'}")


def wait_for_exit(pid, timeout=30.0):
    """Wait until a process is a zombie: ended, and not asked about yet."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.01)
    raise AssertionError("still running")


def whole_checkpoints(folder):
    return [step for step, path in list_checkpoints(folder) if not problems(path)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_in_training_saves_and_resumes_to_the_same_run(tmp_path, straight, forge, number, code):
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, slow_ms=SLOW_MS, settings={"save_steps": None})
    wait_for(folder / "trainer_log.jsonl", r'"step": 4')
    os.kill(pid, number)
    assert forge.wait(pid) == code
    steps = whole_checkpoints(folder)
    assert len(steps) == 1 and 4 <= steps[0] < 8
    text = output.read_text()
    assert "stopping at the next step boundary" in text and f"saved as {folder}/checkpoint-{steps[0]}" in text
    assert forge.run(folder=folder, settings={"save_steps": None}) == 0
    same_run(straight, folder)


def test_second_sigterm_still_saves(tmp_path, forge):
    folder = tmp_path / "run"
    pid, _ = forge.start(folder=folder, slow_ms=300, settings={"save_steps": None})
    wait_for(folder / "trainer_log.jsonl", r'"step": 1')
    for _ in range(3):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    assert forge.wait(pid) == 143
    assert len(whole_checkpoints(folder)) == 1


def test_second_sigint_leaves_at_once(tmp_path, forge):
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, slow_ms=20_000, settings={"save_steps": None})
    wait_for(output, "after|before training  asked: two")
    os.kill(pid, signal.SIGINT)
    wait_for(output, "press again to leave at once")
    os.kill(pid, signal.SIGINT)
    wait_for_exit(pid, timeout=10)  # the batch it waits for takes 20 seconds
    assert forge.wait(pid) == 130
    assert whole_checkpoints(folder) == []


def test_second_sigint_leaves_a_call_that_never_returns_to_python(tmp_path, forge):
    """Raising in a handler does nothing while one C call runs: here a lock that nobody releases."""
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, hang=True)
    wait_for(output, "hanging")
    for _ in range(2):
        os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
    wait_for_exit(pid, timeout=10)
    assert forge.wait(pid) == 130


def test_sigusr1_saves_and_goes_on(tmp_path, straight, forge):
    folder = tmp_path / "run"
    settings = {"save_steps": None, "save_total_limit": 5}
    pid, _ = forge.start(folder=folder, slow_ms=SLOW_MS, settings=settings)
    wait_for(folder / "trainer_log.jsonl", r'"step": 2')
    os.kill(pid, signal.SIGUSR1)
    assert forge.wait(pid) == 0
    steps = whole_checkpoints(folder)
    assert len(steps) == 2 and 2 <= steps[0] < 8 and steps[1] == 8
    assert rows(folder) == rows(straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_signal_in_evaluation(tmp_path, forge, number, code):
    """A stop leaves the evaluation, which the resumed run does again; a save is made in its midst."""
    straight, folder = tmp_path / "straight", tmp_path / "run"
    settings = {"save_steps": None, "save_total_limit": 5}
    assert forge.run(folder=straight, slow_validation_ms=1, settings=settings) == 0
    pid, _ = forge.start(folder=folder, slow_validation_ms=SLOW_MS, settings=settings)
    wait_for(folder / "trainer_log.jsonl", r'"step": 3')
    time.sleep(0.2)  # 20 batches of 60 ms: in the midst
    os.kill(pid, number)
    assert forge.wait(pid) == code
    assert whole_checkpoints(folder) == ([3] if code else [3, 8])
    if code:
        assert not [row for row in rows(folder) if "eval_loss" in row]
        assert forge.run(folder=folder, slow_validation_ms=1, settings=settings) == 0
    same_run(straight, folder)


def in_generation(model, at, action):
    plain = greedy(model)
    calls = []

    def generate(input_ids):
        calls.append(input_ids)
        if len(calls) == at:
            action()
        return plain(input_ids)

    return generate


@pytest.mark.parametrize("at", [1, 2, 4, 8])
def test_stop_in_generation(tmp_path, straight, at):
    """Before step 1, at step 3, after the last: the answer it cuts short is not written, and asked again."""
    model = ToyModel()
    generate = in_generation(model, at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer, _ = toy_trainer(tmp_path, model=model, generate=generate)
    with pytest.raises(Interrupted) as caught:
        trainer.run()
    assert caught.value.exit_code == 143
    step = {1: 0, 2: 0, 4: 3, 8: 8}[at]
    assert whole_checkpoints(tmp_path)[-1] == step
    assert not [row for row in rows(tmp_path, "samples.jsonl") if row["step"] == step]
    toy_trainer(tmp_path)[0].run()
    same_run(straight, tmp_path)


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    num_threads = threading.active_count()
    watch = SignalWatch()
    with watch, watch:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert watch.wants_something() and watch.take_save_request() and not watch.wants_something()
        watch.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            watch.check()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1
    until = time.monotonic() + 10
    while threading.active_count() > num_threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == num_threads


def test_second_interrupt_handled_by_the_caller_does_not_kill(monkeypatch):
    monkeypatch.setattr("pyft.trainer.signals.LEAVE_SECONDS", 0.3)
    with pytest.raises(KeyboardInterrupt), SignalWatch():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    time.sleep(0.6)  # the process would be gone


def test_outside_the_main_thread_nothing_is_watched(tmp_path):
    errors = []

    def run():
        try:
            toy_trainer(tmp_path, source=ToySource(2), questions=False, settings={"max_steps": 1})[0].run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
