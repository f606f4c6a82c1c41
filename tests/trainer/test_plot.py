from __future__ import annotations

import sys

from toy import toy_run

from pyft.trainer.plot import plot_loss


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
