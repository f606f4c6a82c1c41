from __future__ import annotations

import os
import signal
import threading

import pytest
from toy import ToyModel, ToySource, greedy, rows, same_run, toy_trainer
from waiting import SECONDS, deliver, process_state, wait_for_text, wait_until

from pyft.errors import Interrupted
from pyft.run.checkpoint import problems
from pyft.run.layout import list_checkpoints
from pyft.trainer.signals import SignalWatch


def wait_for_exit(pid):
    """Wait until a process has ended, without asking for its exit code."""
    wait_until(lambda: process_state(pid) == "Z", f"the end of process {pid}")


def whole_checkpoints(folder):
    return [step for step, path in list_checkpoints(folder) if not problems(path)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_in_training_saves_and_resumes_to_the_same_run(tmp_path, straight, forge, number, code):
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, pause_after=7, settings={"save_steps": None})
    wait_for_text(output, "paused")
    wait_for_text(folder / "trainer_log.jsonl", r'"step": 4')
    deliver(pid, number)
    forge.go_on(output)
    assert forge.wait(pid) == code
    steps = whole_checkpoints(folder)
    assert len(steps) == 1 and 4 <= steps[0] < 8
    text = output.read_text()
    assert "stopping at the next step boundary" in text and f"saved as {folder}/checkpoint-{steps[0]}" in text
    assert forge.run(folder=folder, settings={"save_steps": None}) == 0
    same_run(straight, folder)


def test_second_sigterm_still_saves(tmp_path, forge):
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, pause_after=2, settings={"save_steps": None})
    wait_for_text(output, "paused")
    for _ in range(3):
        deliver(pid, signal.SIGTERM)
    forge.go_on(output)
    assert forge.wait(pid) == 143
    assert len(whole_checkpoints(folder)) == 1


def test_second_sigint_leaves_at_once(tmp_path, forge):
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, pause_after=0, settings={"save_steps": None})
    wait_for_text(output, "paused")
    os.kill(pid, signal.SIGINT)
    wait_for_text(output, "press again to leave at once")
    os.kill(pid, signal.SIGINT)
    wait_for_exit(pid)  # the batch that it waits for never comes
    assert forge.wait(pid) == 130
    assert whole_checkpoints(folder) == []


def test_second_sigint_leaves_a_call_that_never_returns_to_python(tmp_path, forge):
    """Raising in a handler does nothing while one C call runs: here a lock that nobody releases."""
    folder = tmp_path / "run"
    pid, output = forge.start(folder=folder, hang=True)
    wait_for_text(output, "hanging")
    wait_until(lambda: process_state(pid) == "S", "asleep in the C call")
    for _ in range(2):
        deliver(pid, signal.SIGINT)
    wait_for_exit(pid)
    assert forge.wait(pid) == 130


def test_sigusr1_saves_and_goes_on(tmp_path, straight, forge):
    folder = tmp_path / "run"
    settings = {"save_steps": None, "save_total_limit": 5}
    pid, output = forge.start(folder=folder, pause_after=4, settings=settings)
    wait_for_text(output, "paused")
    wait_for_text(folder / "trainer_log.jsonl", r'"step": 2')
    deliver(pid, signal.SIGUSR1)
    forge.go_on(output)
    assert forge.wait(pid) == 0
    steps = whole_checkpoints(folder)
    assert len(steps) == 2 and 2 <= steps[0] < 8 and steps[1] == 8
    assert rows(folder) == rows(straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_signal_in_evaluation(tmp_path, forge, number, code):
    """A stop leaves the evaluation, which the resumed run does again; a save is made in its midst."""
    straight, folder = tmp_path / "straight", tmp_path / "run"
    settings = {"save_steps": None, "save_total_limit": 5}
    assert forge.run(folder=straight, long_validation=True, settings=settings) == 0
    pid, output = forge.start(
        folder=folder, long_validation=True, pause_validation_after=5, settings=settings
    )
    wait_for_text(output, "paused")
    deliver(pid, number)
    forge.go_on(output)
    assert forge.wait(pid) == code
    assert whole_checkpoints(folder) == ([3] if code else [3, 8])
    if code:
        assert not [row for row in rows(folder) if "eval_loss" in row]
        assert forge.run(folder=folder, long_validation=True, settings=settings) == 0
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
    generate = in_generation(model, at, lambda: signal.raise_signal(signal.SIGTERM))
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
    threads = set(threading.enumerate())
    watch = SignalWatch()
    with watch, watch:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        signal.raise_signal(signal.SIGUSR1)
        assert watch.wants_something() and watch.take_save_request() and not watch.wants_something()
        watch.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            watch.check()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1
    wait_until(lambda: threads.issuperset(threading.enumerate()), "the end of the watch's thread")


def test_second_interrupt_handled_by_the_caller_does_not_kill(monkeypatch):
    """The thread that would end the process ends itself as soon as the watch does."""
    monkeypatch.setattr("pyft.trainer.signals.LEAVE_SECONDS", 10 * SECONDS)
    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), SignalWatch():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        wait_until(lambda: False, "KeyboardInterrupt")
    wait_until(lambda: threads.issuperset(threading.enumerate()), "the end of the watch's thread")


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
