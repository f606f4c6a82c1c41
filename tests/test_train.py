"""The training command as a user runs it, on tiny real models: files, log rows, exact resume, errors."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import byte_tokenizer, saved_model

STEP_KEYS = {
    "stage", "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second", "num_tokens",
    "num_target_tokens", "peak_memory_bytes",
}  # fmt: skip
CLOCK = ("per_second", "seconds", "time", "memory")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base model 基座")
    saved_model(folder, "llama", vocab_size=259)
    byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}+{i}?"},
                {"role": "assistant", "content": f"{2 * i} " * (i % 5 + 1)},
            ]
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, base: Path, data: Path, **train: object) -> Path:
    """A QLoRA recipe with dropout, packed, of a few steps."""
    content = {
        "mode": "sft",
        "model": {"name_or_path": str(base), "quantization": "nf4", "dtype": "float32"},
        "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.25},
        "data": {"train": [{"path": str(data)}], "val_size": 4, "max_length": 128},
        "train": {
            "output_dir": str(folder / "run"),
            "max_steps": 6,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "eval_steps": 3,
            "save_steps": 2,
            "evaluation_inputs": ["1+1?"],
            "evaluation_max_new_tokens": 4,
            **train,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def train(path: Path, *overrides: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"PYFT_FAULT": fault} if fault else {})
    command = [sys.executable, "-m", "pyft.train", str(path), *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def rows(folder: Path, name: str = "trainer_log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def without_clock(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in log]


def weights_hash(folder: Path) -> str:
    names = ("adapter_model.safetensors", "model.safetensors")
    return next(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names if (folder / name).exists()
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, base: Path, chats: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("straight")
    done = train(recipe(folder, base, chats))
    assert done.returncode == 0, done.stderr
    yield folder / "run", done.stdout


def test_a_run_leaves_every_file_that_scripts_rely_on(straight: tuple[Path, str], base: Path) -> None:
    run, _ = straight
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml", "trainer_log.jsonl", "samples.jsonl", "training_loss.png", "adapter_config.json",
        "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "checkpoint-4",
        "checkpoint-6",
    } <= names  # fmt: skip
    assert "checkpoint-2" not in names  # two are kept
    assert (run / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["model"]["name_or_path"] == str(base)
    assert resolved["train"]["learning_rate"] == 1e-3 and resolved["data"]["packing"] is True
    manifest = json.loads((run / "checkpoint-6" / "manifest.json").read_text(encoding="utf-8"))
    written = {path.name for path in (run / "checkpoint-6").iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == written and any(name.startswith("optimizer") for name in written)


def test_the_log_has_one_row_per_step_and_evaluations_apart(straight: tuple[Path, str]) -> None:
    log = rows(straight[0])
    steps = [row for row in log if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(set(row) >= STEP_KEYS for row in steps)
    evaluations = [row for row in log if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert all("eval_perplexity" in row and "loss" not in row for row in evaluations)
    samples = rows(straight[0], "samples.jsonl")
    assert [row["when"] for row in samples] == ["before", "during", "after"]
    assert set(samples[0]) == {"stage", "step", "when", "prompt", "completion", "stopped"}


def test_the_output_is_plain_text_with_ledger_sample_losses_and_the_chat_line(
    straight: tuple[Path, str],
) -> None:
    _, shown = straight
    assert "\r" not in shown and "\x1b" not in shown
    for expected in ("python -m pyft.chat", "1+1?", "loss", "peak memory", "40"):
        assert expected in shown


def test_the_same_recipe_gives_the_same_run(
    straight: tuple[Path, str], tmp_path: Path, base: Path, chats: Path
) -> None:
    """More or fewer saves and evaluations never change the weights."""
    done = train(recipe(tmp_path, base, chats), "train.save_steps=5", "train.eval_steps=null")
    assert done.returncode == 0, done.stderr
    assert weights_hash(tmp_path / "run") == weights_hash(straight[0])
    losses = [
        [row["loss"] for row in rows(folder) if "loss" in row] for folder in (tmp_path / "run", straight[0])
    ]
    assert losses[0] == losses[1]


def test_killed_and_resumed_equals_straight_to_the_last_bit(
    straight: tuple[Path, str], tmp_path: Path, base: Path, chats: Path
) -> None:
    path = recipe(tmp_path, base, chats)
    killed = train(path, fault="kill_between_files@4")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    done = train(path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-2" in done.stdout
    assert weights_hash(tmp_path / "run") == weights_hash(straight[0])
    assert without_clock(rows(tmp_path / "run")) == without_clock(rows(straight[0]))
    assert rows(tmp_path / "run", "samples.jsonl") == rows(straight[0], "samples.jsonl")


def test_a_finished_run_is_left_as_it_is(straight: tuple[Path, str], base: Path) -> None:
    run, _ = straight
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(run.rglob("*"))}
    done = train(run / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(run.rglob("*"))}


def test_the_resolved_config_gives_the_same_weights(straight: tuple[Path, str], tmp_path: Path) -> None:
    done = train(straight[0] / "config.yaml", f"train.output_dir={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    assert weights_hash(tmp_path / "again") == weights_hash(straight[0])


def test_full_fine_tuning_in_bfloat16_resumes_exactly_and_keeps_base_names(
    tmp_path: Path, base: Path, chats: Path
) -> None:
    overrides = [
        "adapter=null",
        "model.quantization=null",
        "model.dtype=bfloat16",
        "train.learning_rate=1e-5",
    ]
    hashes = []
    for name, fault in (("one", ""), ("two", "kill_before_rename@4")):
        path = recipe(tmp_path, base, chats, output_dir=str(tmp_path / name))
        if fault:
            assert train(path, *overrides, fault=fault).returncode == -signal.SIGKILL
        done = train(path, *overrides)
        assert done.returncode == 0, done.stderr
        hashes.append(weights_hash(tmp_path / name))
    assert hashes[0] == hashes[1]
    trained, original = (
        load_file(tmp_path / "one" / "model.safetensors"),
        load_file(base / "model.safetensors"),
    )
    assert trained.keys() == original.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in trained.values())


def test_pretraining_learns_every_token_of_plain_text(tmp_path: Path, base: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"Line {i} of plain text. " * 9}) + "\n" for i in range(12)))
    done = train(recipe(tmp_path, base, data), "mode=pretrain")
    assert done.returncode == 0, done.stderr
    first = rows(tmp_path / "run")[0]
    assert 0 < first["num_tokens"] - first["num_target_tokens"] <= 20  # one per sample has nothing after it


def test_stages_hand_on_their_results(tmp_path: Path, base: Path, chats: Path) -> None:
    path = recipe(tmp_path, base, chats, max_steps=2)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["stages"] = [
        {"name": "first"},
        {"name": "second", "adapter": None, "model": {"quantization": None}},
    ]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = train(path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    second = yaml.safe_load((run / "second" / "config.yaml").read_text(encoding="utf-8"))
    assert second["model"]["name_or_path"] == str(run / "first" / "merged")
    merged = load_file(run / "first" / "merged" / "model.safetensors")
    original = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged[name], original[name])
    assert (run / "second" / "model.safetensors").exists()
    assert {row["stage"] for row in rows(run / "second")} == {"second"}


def test_three_steps_that_are_not_finite_stop_the_run(tmp_path: Path, base: Path, chats: Path) -> None:
    done = train(recipe(tmp_path, base, chats), fault="nan_grad@2,nan_grad@3,nan_grad@4")
    assert done.returncode == 6
    assert [line[:6] for line in done.stderr.splitlines()] == ["error:"]
    skipped = [row for row in rows(tmp_path / "run") if row.get("skipped")]
    assert [row["step"] for row in skipped] == [2, 3, 4]
    assert all(set(row) >= STEP_KEYS and row["loss"] != 0.0 for row in skipped)


def test_out_of_memory_names_what_to_change(tmp_path: Path, base: Path, chats: Path) -> None:
    done = train(recipe(tmp_path, base, chats), fault="oom@2")
    assert done.returncode == 4
    for name in ("per_device_train_batch_size", "max_length", "gradient_checkpointing"):
        assert name in done.stderr


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path, base: Path, chats: Path) -> None:
    path = recipe(tmp_path, base, chats, max_steps=400, save_steps=None, eval_steps=None)
    command = [sys.executable, "-u", "-m", "pyft.train", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "loss" in line and "step" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    saved = [item.name for item in (tmp_path / "run").glob("checkpoint-*")]
    assert len(saved) == 1
    step = int(saved[0].removeprefix("checkpoint-"))
    done = train(path, f"train.max_steps={step + 1}")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, step + 2))


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["train.lerning_rate=1"], 2, "learning_rate"),
        (["model.template=nosuch"], 2, "chatml"),
        (["data.train[0].path=/nowhere/at all.jsonl"], 3, "/nowhere/at all.jsonl"),
        (["model.name_or_path=/nowhere/model"], 2, "/nowhere/model"),
        (["train.resume_from_checkpoint=/nowhere/checkpoint-5"], 2, "/nowhere/checkpoint-5"),
        (["train.output_dir=/proc/run"], 5, "/proc/run"),
    ],
)
def test_mistakes_get_one_line_and_their_exit_code(
    tmp_path: Path, base: Path, chats: Path, overrides: list[str], code: int, expected: str
) -> None:
    done = train(recipe(tmp_path, base, chats), *overrides)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stdout + done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_a_changed_base_model_is_not_resumed_upon(tmp_path: Path, base: Path, chats: Path) -> None:
    own = tmp_path / "base"
    saved_model(own, "llama", vocab_size=259)
    byte_tokenizer(own)
    path = recipe(tmp_path, own, chats, max_steps=2)
    assert train(path, fault="kill_before_rotate@2").returncode == -signal.SIGKILL
    saved_model(own, "llama", vocab_size=259, seed=1)
    refused = train(path)
    assert refused.returncode == 2
    assert "base_model" in refused.stderr


def test_nan_in_the_base_is_named_before_the_first_step(tmp_path: Path, chats: Path) -> None:
    own = tmp_path / "base"
    model = saved_model(own, "llama", vocab_size=259)
    byte_tokenizer(own)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    model.save_pretrained(own)
    done = train(recipe(tmp_path, own, chats))
    assert done.returncode == 6
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr
    assert not (tmp_path / "run" / "trainer_log.jsonl").exists() or not rows(tmp_path / "run")


def test_a_tokenizer_longer_than_the_embedding(tmp_path, chats):
    """Full fine-tuning adds the rows, resumes with them and saves them; an adapter's base is left alone."""
    base = tmp_path / "short"
    saved_model(base, "llama", vocab_size=256)
    byte_tokenizer(base)
    path = recipe(tmp_path, base, chats)
    result = train(path)
    assert result.returncode == 2 and "embedding only 256" in result.stderr
    full = ("adapter=null", "model.quantization=null")
    first = train(path, *full, "train.max_steps=4", fault="kill_before_rotate@2")
    assert first.returncode == -signal.SIGKILL and "grows from 256 to 259 rows" in first.stderr
    result = train(path, *full, "train.max_steps=4")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert load_file(run / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 259
    assert json.loads((run / "config.json").read_text())["vocab_size"] == 259
    command = [sys.executable, "-m", "pyft.chat", str(run), "--prompt", "1+1?", "--max-new-tokens", "2"]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
