from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from toy import rows, same_run, toy_loss, toy_run, toy_trainer, trained

from pyft.config.schema import TrainConfig
from pyft.errors import ConfigError
from pyft.run.checkpoint import problems
from pyft.run.layout import list_checkpoints
from pyft.tasks.task import Loss
from pyft.trainer.settings import MAY_CHANGE, TrainSettings


def snapshot(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("kind", ["kill_between_files", "kill_before_rename", "kill_before_rotate"])
@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_killed_in_any_save_and_resumed_equals_one_run(tmp_path, straight, forge, kind, step):
    folder = tmp_path / "killed"
    assert forge.run(folder=folder, fault=f"{kind}@{step}") == -9
    whole = [number for number, path in list_checkpoints(folder) if not problems(path)]
    assert [number for number, _ in list_checkpoints(folder)] == whole
    assert max(whole, default=0) == (step if kind == "kill_before_rotate" else step - 2)
    assert forge.run(folder=folder) == 0
    same_run(straight, folder)
    assert not [path for path in folder.iterdir() if "staging" in path.name]


def test_killed_in_every_save_of_one_run(tmp_path, straight, forge):
    folder = tmp_path / "killed"
    for step in (2, 4, 6, 8):  # a fault is not spent: each attempt is killed one save later
        assert forge.run(folder=folder, fault=f"kill_before_rotate@{step}") == -9
    assert forge.run(folder=folder) == 0
    same_run(straight, folder)


def test_random_generators_of_python_and_numpy_resume(tmp_path):
    import random

    import numpy

    def drawing(model, batch):
        loss = toy_loss(model, batch)
        return Loss(loss.sum * (1 + random.gauss(0, 1) + float(numpy.random.normal())), loss.count)

    for name, stops in (("straight", [8]), ("resumed", [4, 8])):
        for max_steps in stops:
            settings = {
                "max_steps": max_steps,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "eval_steps": 4,
            }
            toy_run(tmp_path / name, objective=drawing, settings=settings, questions=False)
    losses = [
        [row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("straight", "resumed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_saves_more_or_fewer_change_nothing(tmp_path):
    toy_run(tmp_path / "few", settings={"save_steps": None})
    toy_run(tmp_path / "many", settings={"save_steps": 1})
    same_run(tmp_path / "few", tmp_path / "many")


def test_evaluations_more_or_fewer_change_no_weight(tmp_path):
    _, few = toy_run(tmp_path / "few", settings={"eval_steps": None}, questions=False)
    _, many = toy_run(tmp_path / "many", settings={"eval_steps": 1})
    assert all(
        torch.equal(few, many)
        for few, many in zip(trained(few).values(), trained(many).values(), strict=True)
    )


def test_damaged_newest_is_named_and_the_previous_one_used(tmp_path, straight, capsys):
    toy_run(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    weights = tmp_path / "run" / "checkpoint-8" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    toy_run(tmp_path / "run")
    out = capsys.readouterr().out
    assert (
        "checkpoint-8 is damaged" in out
        and "weights.safetensors" in out
        and "checkpoint-6 (step 6 of 8)" in out
    )
    same_run(straight, tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "broken manifest", "missing weights"])
def test_incomplete_checkpoints_are_passed_over(tmp_path, damage, capsys):
    toy_run(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    newest = tmp_path / "run" / "checkpoint-8"
    if damage == "truncated":
        os.truncate(newest / "weights.safetensors", 100)
    elif damage == "missing weights":
        (newest / "weights.safetensors").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text('{"files": [')
    capsys.readouterr()
    result, _ = toy_run(tmp_path / "run")
    assert "checkpoint-8 is damaged or incomplete" in capsys.readouterr().out
    assert result.step == 8


def test_all_checkpoints_damaged_is_refused(tmp_path):
    toy_run(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        (checkpoint / "manifest.json").unlink()
    before = snapshot(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        toy_trainer(tmp_path / "run")
    assert len(caught.value.messages) == 3 and "no checkpoint is whole" in caught.value.messages[-1]
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("how", ["auto", "explicit", "folder"])
def test_missing_optimizer_is_refused_by_name(tmp_path, how):
    folder = tmp_path / "run"
    toy_run(folder)
    (folder / "finished.json").unlink()
    (folder / "checkpoint-8" / "optimizer.safetensors").unlink()
    resume = {"auto": "auto", "explicit": folder / "checkpoint-8", "folder": folder}[how]
    with pytest.raises(ConfigError, match=r"optimizer\.safetensors is missing .*checkpoint-8"):
        toy_trainer(folder, resume=resume)


def test_identity_is_compared_field_by_field(tmp_path):
    toy_run(tmp_path / "run", settings={"max_steps": 4})
    (tmp_path / "run" / "finished.json").unlink()
    changed = {"model": {"sha": "b"}, "seed": 1, "extra": True}
    with pytest.raises(ConfigError) as caught:
        toy_trainer(tmp_path / "run", identity=changed, settings={"max_steps": 6, "learning_rate": 0.5})
    text = caught.value.messages
    assert len(text) == 3
    assert text[0].startswith("extra was absent and is True")
    assert text[1].startswith("model.sha was 'a' and is 'b'")
    assert text[2].startswith("train.learning_rate was 0.02 and is 0.5")


def test_identity_is_compared_with_a_finished_run_too(tmp_path):
    toy_run(tmp_path / "run", settings={"max_steps": 4})
    with pytest.raises(ConfigError, match=r"seed was 1 and is 2 .*finished\.json"):
        toy_trainer(tmp_path / "run", identity={"model": {"sha": "a"}, "seed": 2}, settings={"max_steps": 4})


def test_only_the_documented_settings_may_change():
    identity = TrainSettings.of(TrainConfig()).identity()
    assert not set(MAY_CHANGE) & set(identity)
    assert {"learning_rate", "seed", "gradient_accumulation_steps", "weight_decay", "warmup_steps"} <= set(
        identity
    )


def test_finished_run_is_not_touched(tmp_path, capsys):
    toy_run(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    capsys.readouterr()
    for resume in ("auto", tmp_path / "run" / "checkpoint-6"):
        result, _ = toy_run(tmp_path / "run", resume=resume)
        assert result.already_finished and result.step == 8
        assert "is finished (8 steps)" in capsys.readouterr().out
    assert snapshot(tmp_path / "run") == before


def test_finished_run_with_more_steps_goes_on(tmp_path, capsys):
    settings = {"lr_scheduler_type": "constant", "warmup_steps": 0.0, "eval_steps": 4}
    toy_run(tmp_path / "straight", settings=settings)
    toy_run(tmp_path / "run", settings={**settings, "max_steps": 4})
    capsys.readouterr()
    toy_run(tmp_path / "run", settings=settings)
    assert "the run had 4 steps and has 8 now" in capsys.readouterr().out
    assert rows(tmp_path / "straight") == rows(tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, 9))


def test_fewer_steps_than_the_checkpoint_are_refused(tmp_path):
    toy_run(tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    with pytest.raises(ConfigError, match="step 8, past the 6 steps"):
        toy_trainer(tmp_path / "run", settings={"max_steps": 6})


def test_no_resumption_never_overwrites(tmp_path):
    toy_run(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(ConfigError, match="a run is there already"):
        toy_trainer(tmp_path / "run", resume=None)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(path)
    (tmp_path / "run" / "finished.json").unlink()
    with pytest.raises(ConfigError, match="a run is there already"):
        toy_trainer(tmp_path / "run", resume=None)
    assert set(snapshot(tmp_path / "run")) < set(before)


def test_auto_without_a_checkpoint_starts_fresh_and_says_so(tmp_path, straight, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "trainer_log.jsonl").write_text('{"step": 1, "loss": 3.0}\n')  # killed before its first save
    toy_run(folder)
    assert f"no checkpoint in {folder}: starting fresh" in capsys.readouterr().out
    same_run(straight, folder)


def test_explicit_path_without_a_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(ConfigError, match=r"train\.resume_from_checkpoint"):
            toy_trainer(tmp_path / "run", resume=path)


def test_explicit_older_checkpoint_sets_later_ones_aside(tmp_path, straight, forge):
    folder = tmp_path / "run"
    toy_run(folder)
    (folder / "finished.json").unlink()
    # Killed right after the resumption: the next `auto` must not pick the course that was left.
    assert forge.run(folder=folder, resume=folder / "checkpoint-6", fault="kill_between_files@8") == -9
    assert forge.run(folder=folder) == 0
    assert (folder / "superseded-checkpoint-8").is_dir()
    same_run(straight, folder)


def test_checkpoint_of_another_folder(tmp_path, straight):
    toy_run(tmp_path / "run", resume=straight / "checkpoint-6")
    steps = [row["step"] for row in rows(tmp_path / "run") if "loss" in row]
    assert steps == [7, 8]
    assert rows(straight)[-3:] == rows(tmp_path / "run")
    assert (straight / "checkpoint-8").is_dir()


def test_log_that_lost_rows_is_told(tmp_path, capsys):
    toy_run(tmp_path / "run", settings={"max_steps": 4})
    os.truncate(tmp_path / "run" / "trainer_log.jsonl", 10)
    capsys.readouterr()
    toy_run(tmp_path / "run")
    assert "trainer_log.jsonl has changed since the checkpoint was saved" in capsys.readouterr().out


def test_other_parameters_are_refused(tmp_path):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(2, 2)

    toy_run(tmp_path / "run", settings={"max_steps": 2})
    trainer, _ = toy_trainer(tmp_path / "run", model=Other(), load_weights=lambda folder: None)
    with pytest.raises(ConfigError, match="of other parameters"):
        trainer.run()


def test_trainer_state_can_be_read_by_people(tmp_path):
    toy_run(tmp_path / "run", settings={"max_steps": 3})
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["step"] == state["total_steps"] == 3
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (0, 6)
    assert state["identity"]["model"] == {"sha": "a"}
    assert set(state["log_bytes"]) == {"trainer_log.jsonl", "samples.jsonl"}
