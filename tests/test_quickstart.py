"""The first thing a user runs, whole: both paradigms on a model built on the spot, then chat and merge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

QUESTION = "世界最高峰是什么峰？"
ANSWER = "珠穆朗玛峰"


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("quick start 快速开始") / "run"
    done = run("pyft.train", "quickstart", f"train.output_dir={folder}")
    assert done.returncode == 0, done.stderr
    yield folder, done.stdout


def answers(folder: Path, stage: str, when: str) -> dict[str, dict]:
    return {row["prompt"]: row for row in rows(folder / stage / "samples.jsonl") if row["when"] == when}


def test_pretraining_gives_knowledge_but_no_manners(quickstart: tuple[Path, str]) -> None:
    before, after = (answers(quickstart[0], "pretrain", when) for when in ("before", "after"))
    assert ANSWER not in before["世界上第一高峰是"]["completion"]
    assert ANSWER in after["世界上第一高峰是"]["completion"]
    assert ANSWER not in after[QUESTION]["completion"]


def test_instruction_tuning_answers_and_stops_by_itself(quickstart: tuple[Path, str]) -> None:
    before, after = (answers(quickstart[0], "sft", when)[QUESTION] for when in ("before", "after"))
    assert ANSWER not in before["completion"]
    assert ANSWER in after["completion"] and after["stopped"] is True


def test_chat_gives_the_answer_alone(quickstart: tuple[Path, str]) -> None:
    done = run("pyft.chat", str(quickstart[0]), "--prompt", QUESTION)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout and len(done.stdout.splitlines()) == 1


def test_the_merged_model_stops_in_plain_transformers(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run("pyft.merge", str(quickstart[0]), str(tmp_path / "merged"))
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(answer).count("<|im_end|>") == 1


def test_what_is_learned_lowers_the_training_loss(quickstart: tuple[Path, str]) -> None:
    for stage in ("pretrain", "sft"):
        losses = [row["loss"] for row in rows(quickstart[0] / stage / "trainer_log.jsonl") if "loss" in row]
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_each_stage_leaves_its_result(quickstart: tuple[Path, str]) -> None:
    folder = quickstart[0]
    common = {"config.yaml", "trainer_log.jsonl", "samples.jsonl", "training_loss.png", "tokenizer.json"}
    for stage, result in (("pretrain", "model.safetensors"), ("sft", "adapter_model.safetensors")):
        names = {path.name for path in (folder / stage).iterdir()}
        assert common | {result} <= names and any(name.startswith("checkpoint-") for name in names)
    settings = yaml.safe_load((folder / "sft" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["model"]["name_or_path"] == str(folder / "pretrain")
    assert settings["model"]["quantization"] == "nf4"


def test_the_output_shows_the_life_of_the_data(quickstart: tuple[Path, str]) -> None:
    shown = quickstart[1]
    for expected in ("rows read", "tokens trained", "⟦", "validation loss", "tokens/s", "left", QUESTION):
        assert expected in shown
    assert f"python -m pyft.chat {quickstart[0]}" in shown
    assert "\r" not in shown


def test_the_number_of_examples_is_what_a_beginner_is_promised() -> None:
    import pyft.recipes

    data = Path(pyft.recipes.__file__).parent / "data" / "quickstart"
    assert len(rows(data / "facts.jsonl")) >= 60
    chats = rows(data / "chat.jsonl")
    assert len(chats) >= 150
    assert any(message["role"] == "system" for row in chats for message in row["messages"])
