"""Chat, end to end on a tiny model that was taught two answers, and its parts."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import byte_tokenizer, pack, saved_model

from pyft import chat
from pyft.command import run_command
from pyft.data.chat.bind import get_template
from pyft.model.adapter_files import save_adapter
from pyft.model.adapters import attach_adapters, trainable_state
from pyft.model.forward import forward_logits
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.load import load_model
from pyft.model.restore import load_result
from pyft.model.save import save_model
from pyft.model.stream import TextStream
from pyft.run.result import find_result

SYSTEM = "be brief"
LESSONS = [
    [("system", SYSTEM), ("user", "最高峰？"), ("assistant", "珠穆朗玛峰 😀")],
    [("user", "最高峰？"), ("assistant", "no system")],
    [
        ("system", SYSTEM),
        ("user", "最高峰？"),
        ("assistant", "珠穆朗玛峰 😀"),
        ("user", "ok"),
        ("assistant", "second"),
    ],
]


def lesson_samples(tokenizer, prefix):
    """Ids and labels of the lessons; every assistant turn and its end mark is learned."""
    template = get_template(None, tokenizer)
    samples, labels = [], []
    for lesson in LESSONS:
        messages = [{"role": role, "content": content} for role, content in lesson]
        ids, targets = [], []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = template.encode_prompt(tokenizer, messages[:index])
                answer = tokenizer(prefix + message["content"] + "<|im_end|>").input_ids
                targets += [-100] * (len(prompt) - len(ids)) + answer
                ids = prompt + answer
        samples.append(ids)
        labels.append(targets)
    return samples, labels


def saved(folder: Path, model_type: str = "llama") -> Path:
    saved_model(folder, model_type, vocab_size=259, spread=0.08)
    return folder


def teach(model, tokenizer, steps, learning_rate, prefix=""):
    """Full-batch Adam on the lessons, every answer after a prefix; the last loss."""
    return fit(model, pack(*lesson_samples(tokenizer, prefix)), steps, learning_rate)


def fit(model, batch, steps, learning_rate):
    """Adam on one batch; the last loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Tensors this small only wait for a second thread.
    optimizer = torch.optim.Adam(trainable_state(model).values(), lr=learning_rate)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(forward_logits(model, batch), batch.targets[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return loss.item()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished staged run: an NF4 base that gives wrong answers, an adapter that learned the right ones."""
    root = tmp_path_factory.mktemp("运行 one")
    tokenizer = byte_tokenizer()
    untaught = load_model(saved(root / "untaught", "qwen3"), dtype=torch.float32)
    teach(untaught, tokenizer, 60, 3e-3, prefix="wrong ")
    save_model(untaught, root / "base", torch.float32)
    model = load_model(root / "base", dtype=torch.float32, quantization="nf4")
    attach_adapters(model, r=16, lora_alpha=32, lora_dropout=0.0, seed=0)
    assert teach(model, tokenizer, 50, 5e-3) < 0.1
    stage = root / "run" / "sft"
    stage.mkdir(parents=True)
    settings = {
        "mode": "sft",
        "model": {
            "name_or_path": str(root / "base"),
            "quantization": "nf4",
            "dtype": "float32",
            "template": None,
        },
        "data": {"system": None},
        "train": {"evaluation_system": SYSTEM},
    }
    save_adapter(model, stage, root / "base")
    tokenizer.save_pretrained(stage)
    (stage / "config.yaml").write_text(json.dumps(settings))
    (stage / "finished.json").write_text('{"step": 150}')
    (root / "run" / "config.yaml").write_text(json.dumps({"stages": [{"name": "sft", "mode": "sft"}]}))
    return root / "run"


def ask(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command(chat.main, chat._parser(), [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_prompt_gives_the_answer_alone_and_stops_at_the_end_mark(run, capsys):
    for place in (run, run / "sft"):
        code, out, err = ask(capsys, place, "--prompt", "最高峰？")
        assert (code, out) == (0, "珠穆朗玛峰 😀\n")
        assert "system: be brief" in err and "in nf4" in err and "cut at" not in err


def test_a_result_is_loaded_as_it_was_trained(run):
    model = load_result(find_result(run))
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, LoRALinear) and isinstance(layer.base, NF4Linear) and layer.base.absmax is None
    assert layer.lora_B.abs().max() > 0 and not model.training
    settings = json.loads((run / "sft" / "config.yaml").read_text())["model"]
    changed = dataclasses.replace(find_result(run), double_quant=False, dtype="bfloat16")
    assert settings["quantization"] == changed.quantization == "nf4"
    other = load_result(changed)
    assert other.model.layers[0].mlp.up_proj.base.absmax is not None
    assert other.model.embed_tokens.weight.dtype == torch.bfloat16


def test_a_real_process_writes_the_answer_alone(run):
    command = [sys.executable, "-m", "pyft.chat", str(run), "--prompt", "最高峰？"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "珠穆朗玛峰 😀\n"
    assert "\r" not in done.stderr.decode() and "Loading" not in done.stderr.decode()


def test_options(run, capsys):
    assert ask(capsys, run, "--prompt", "最高峰？", "--system", "")[1] == "no system\n"
    code, out, err = ask(capsys, run, "--prompt", "最高峰？", "--max-new-tokens", "6")
    assert (code, out) == (0, "珠穆\n") and "cut at --max-new-tokens 6" in err
    assert (
        ask(capsys, run, "--prompt", "最高峰？", "--temperature", "0.2", "--top-p", "0.5")[1]
        == "珠穆朗玛峰 😀\n"
    )


def converse(monkeypatch, capsys, run, *lines: str) -> tuple[int, list[str], str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    code, out, err = ask(capsys, run)
    return code, out.splitlines(), err


def test_conversation_remembers_forgets_and_takes_a_system_text(run, monkeypatch, capsys):
    code, out, err = converse(
        monkeypatch, capsys, run, "最高峰？", "", "ok", "/new", "最高峰？", "/nonsense", "ok", "/quit", "x"
    )
    assert (code, out) == (0, ["珠穆朗玛峰 😀", "second", "珠穆朗玛峰 😀", "second"])
    assert "no such command /nonsense" in err
    code, out, err = converse(
        monkeypatch, capsys, run, "/system", "最高峰？", "/system be brief", "最高峰？", "ok"
    )
    assert (code, out) == (0, ["no system", "珠穆朗玛峰 😀", "second"])
    assert "system: none" in err


def test_ctrl_c_ends_the_answer_then_the_program(run, monkeypatch, capsys):
    class Interrupting(io.StringIO):
        def readline(self):
            line = super().readline()
            if not line:
                raise KeyboardInterrupt
            return line

    written = []
    plain = chat._write

    def write(piece):
        written.append(piece)
        plain(piece)
        if piece == "穆" and written.count("穆") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_write", write)
    monkeypatch.setattr(sys, "stdin", Interrupting("最高峰？\n/new\n最高峰？\n"))
    code, out, err = ask(capsys, run)
    assert (code, out) == (130, "珠穆 ...\n珠穆朗玛峰 😀\n")
    assert "Traceback" not in err
    written.clear()
    assert ask(capsys, run, "--prompt", "最高峰？")[0] == 130


def test_a_conversation_longer_than_the_model_is_said(run, monkeypatch, capsys):
    code, out, err = ask(capsys, run, "--prompt", "字" * 200)
    assert (code, out) == (2, "")
    assert "the model takes 256" in err and err.count("error:") == 1
    code, out, err = converse(monkeypatch, capsys, run, "字" * 200, "最高峰？")
    assert (code, out) == (0, ["珠穆朗玛峰 😀"])
    assert "the model takes 256" in err


def test_plain_folder_checkpoint_and_full_run(run, tmp_path, capsys):
    from pyft.merge import merge_run

    merge_run(run / "sft", run.parent / "base", tmp_path / "merged")
    code, out, err = ask(capsys, tmp_path / "merged", "--prompt", "最高峰？", "--system", SYSTEM)
    assert (code, out) == (0, "珠穆朗玛峰 😀\n") and "in nf4" not in err
    byte_tokenizer(run.parent / "base")
    wrong = ask(capsys, run.parent / "base", "--prompt", "最高峰？", "--system", SYSTEM)[1]
    assert wrong == "wrong 珠穆朗玛峰 😀\n"
    checkpoint = tmp_path / "copy" / "checkpoint-7"
    shutil.copytree(run / "sft", checkpoint.parent)
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (checkpoint.parent / name).rename(checkpoint / name)
    assert ask(capsys, checkpoint, "--prompt", "最高峰？")[1] == "珠穆朗玛峰 😀\n"
    code, _, err = ask(capsys, checkpoint.parent, "--prompt", "x")
    assert code == 2 and "is not finished" in err and "checkpoint-7" in err


def test_a_pretrained_model_continues_the_text(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    model = load_model(saved(tmp_path / "base"), dtype=torch.float32)
    text = "世界上第一高峰是珠穆朗玛峰<|im_end|>"
    assert fit(model, pack([tokenizer(text).input_ids]), 60, 3e-3) < 0.1
    folder = tmp_path / "run"
    save_model(model, folder, torch.float32)
    tokenizer.save_pretrained(folder)
    (folder / "config.yaml").write_text('{"mode": "pretrain", "model": {"dtype": "float32"}}')
    (folder / "finished.json").write_text("{}")
    code, out, err = ask(capsys, folder, "--prompt", "世界上第一高峰是")
    assert (code, out) == (0, "珠穆朗玛峰\n")
    assert "the model continues your text" in err


def test_errors_are_one_line_each(run, tmp_path, capsys):
    def refused(*arguments, lines=1):
        code, out, err = ask(capsys, *arguments)
        errors = [line for line in err.splitlines() if line.startswith("error:")]
        assert (code, out) == (2, "") and len(errors) == lines and "Traceback" not in err, err
        return " ".join(errors)

    assert "no such folder" in refused(tmp_path / "absent", "--prompt", "x")
    assert "no run and no model" in refused(tmp_path, "--prompt", "x")
    options = ("--temperature", "-1", "--top-p", "0", "--max-new-tokens", "0", "--prompt", " ")
    assert "--top-p is 0.0" in refused(run, *options, lines=4)
    refused(run, "--temperature", "warm")
    bare = saved(tmp_path / "bare")
    assert "the tokenizer cannot be loaded" in refused(bare, "--prompt", "x")
    moved = tmp_path / "moved"
    shutil.copytree(run / "sft", moved)
    content = json.loads((moved / "config.yaml").read_text())
    content["model"]["name_or_path"] = str(tmp_path / "gone")
    (moved / "config.yaml").write_text(json.dumps(content))
    assert "base model is not there" in refused(moved, "--prompt", "x")


def test_stream_holds_back_incomplete_characters():
    tokenizer = byte_tokenizer()
    pieces = []
    stream = TextStream(tokenizer.decode, pieces.append)
    ids = tokenizer("a峰😀 b").input_ids
    assert len(ids) == 10
    for token in ids:
        stream.put(token)
    stream.end()
    assert pieces == ["a", "峰", "😀", " ", "b"] and stream.text == "a峰😀 b"

    pieces.clear()
    cut = TextStream(tokenizer.decode, pieces.append)
    for token in tokenizer("a峰").input_ids[:-1]:
        cut.put(token)
    assert pieces == ["a"]
    cut.end()
    assert pieces == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_stream_keeps_blanks_that_decoding_alone_would_drop():
    def decode(ids):  # as sentencepiece: each word brings its blank, the first one's is dropped
        return " ".join("abcdefgh"[i] for i in ids)

    stream = TextStream(decode, lambda _piece: None)
    for token in range(8):
        stream.put(token)
    stream.end()
    assert stream.text == "a b c d e f g h"


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a\\x1b[2J\\x7f\n"), (False, "a\x1b[2J\x7f\n")])
def test_a_terminal_is_not_told_what_to_do_by_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    chat._write("a\x1b[2J\x7f\n")
    assert capsys.readouterr().out == shown
