"""Generators, the picture and the trackers."""

from __future__ import annotations

import random
import sys
import types

import numpy
import pytest
import torch
from toy import rows, same_run, toy_run

from pyft.trainer import trackers
from pyft.trainer.plot import plot_loss
from pyft.trainer.rng import rng_state, same_rng_after, seed_everything, set_rng_state


def draw():
    return random.random(), random.gauss(0, 1), numpy.random.normal(), torch.rand(2).tolist()


@pytest.mark.parametrize("num_drawn", [0, 1, 2, 3])  # an odd number leaves a normal number kept for later
def test_generators_are_put_back(num_drawn):
    seed_everything(7)
    for _ in range(num_drawn):
        draw()
    state = rng_state()
    expected = [draw() for _ in range(3)]
    set_rng_state(state)
    assert [draw() for _ in range(3)] == expected
    set_rng_state(state)
    with same_rng_after():
        draw()
    assert [draw() for _ in range(3)] == expected


def test_seed_starts_every_generator():
    seed_everything(2**40 + 1)
    expected = draw()
    seed_everything(2**40 + 1)
    assert draw() == expected
    seed_everything(2**40 + 2)
    assert all(a != b for a, b in zip(draw(), expected, strict=True))


def test_picture_is_drawn(tmp_path):
    log = [{"stage": "预训练", "step": step, "loss": 3.0 / step} for step in range(1, 5)]
    log += [
        {"stage": "x", "step": 5, "loss": None, "skipped": True},
        {"stage": "x", "step": 5, "eval_loss": 2.0},
    ]
    assert plot_loss(tmp_path / "loss.png", log) is None
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert plot_loss(tmp_path / "empty.png", []) is None


def test_run_leaves_a_picture(tmp_path):
    toy_run(tmp_path, settings={"max_steps": 2}, questions=False)
    assert (tmp_path / "training_loss.png").read_bytes().startswith(b"\x89PNG")


def test_picture_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result, _ = toy_run(tmp_path, settings={"max_steps": 1}, questions=False)
    assert "warning: training_loss.png could not be drawn" in capsys.readouterr().out
    assert result.step == 1 and (tmp_path / "finished.json").exists()


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    toy_run(tmp_path, trackers=["tensorboard"], questions=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == {row["step"]: pytest.approx(row["loss"]) for row in rows(tmp_path) if "loss" in row}
    assert [event.step for event in events.Scalars("eval_loss")] == [3, 6, 8]


def test_missing_tracker_is_a_warning(tmp_path, straight, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    toy_run(tmp_path, trackers=["wandb"])
    out = capsys.readouterr().out
    assert out.count("warning: wandb is not used (train.report_to)") == 1
    same_run(straight, tmp_path)


def fake_wandb(api_key="key", fail_log=False, finish=lambda: None):
    module = types.ModuleType("wandb")
    module.logged = []

    class Run:
        def log(self, values, step):
            if fail_log:
                raise ConnectionError("server is down")
            module.logged.append((step, values))

        def finish(self):
            finish()

    module.api = types.SimpleNamespace(api_key=api_key)
    module.Settings = lambda **options: options
    module.init = lambda **options: Run()
    return module


def test_wandb_is_told_each_step(tmp_path, monkeypatch):
    wandb = fake_wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    toy_run(tmp_path, trackers=["wandb"], questions=False)
    assert [step for step, values in wandb.logged if "loss" in values] == list(range(1, 9))
    assert "stage" not in wandb.logged[0][1] and "step" not in wandb.logged[0][1]


@pytest.mark.parametrize(
    "wandb", [fake_wandb(api_key=None), fake_wandb(fail_log=True)], ids=["no key", "down"]
)
def test_wandb_not_logged_in_or_down_is_one_warning(tmp_path, monkeypatch, capsys, wandb):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    result, _ = toy_run(tmp_path, trackers=["wandb"], settings={"max_steps": 3})
    assert result.step == 3 and capsys.readouterr().out.count("warning: wandb is not used") == 1


def test_tracker_that_hangs_at_the_end_is_left(tmp_path, monkeypatch, capsys):
    import threading

    released = threading.Event()
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(finish=lambda: released.wait(30)))
    toy_run(tmp_path, trackers=["wandb"], settings={"max_steps": 1}, questions=False)
    released.set()
    assert "wandb did not finish" in capsys.readouterr().out
