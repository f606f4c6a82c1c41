from __future__ import annotations

import sys
import types

import pytest
from toy import rows, same_run, toy_run

from pyft.trainer import trackers


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
