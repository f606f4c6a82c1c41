"""Merging: the original base plus the adapter, a plain folder that others load, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import byte_tokenizer, random_samples, saved_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyft import merge
from pyft.command import run_command
from pyft.errors import ConfigError
from pyft.model.adapter_files import save_adapter
from pyft.model.adapters import adapted_layers, attach_adapters
from pyft.model.load import load_model
from pyft.model.save import save_model
from pyft.run.result import find_result

# peft 0.21 asks transformers 5.23+ under a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def tokens():
    return torch.tensor([random_samples([17])[0]])


def write_adapter(folder: Path, base: Path, quantization: str | None = None) -> None:
    model = load_model(base, dtype=torch.float32, quantization=quantization)
    attach_adapters(model, r=4, lora_alpha=8, lora_dropout=0.0, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.normal_(0, 0.2)
    save_adapter(model, folder, base)


def write_run(folder: Path, base: Path, *, finished: bool = True, **model: object) -> Path:
    """A folder as a finished run of one stage leaves it."""
    folder.mkdir(parents=True)
    settings = {"mode": "sft", "model": {"name_or_path": str(base), "dtype": "float32", **model}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    byte_tokenizer(folder)
    write_adapter(folder, base, model.get("quantization"))
    (folder / "trainer_log.jsonl").write_text("{}\n")
    if finished:
        (folder / "finished.json").write_text('{"step": 3}')
    return folder


def run(*arguments: object) -> int:
    return run_command(merge.main, merge._parser(), [str(argument) for argument in arguments])


@pytest.fixture
def base(tmp_path):
    saved_model(tmp_path / "基座", "qwen2", vocab_size=259)
    return tmp_path / "基座"


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_merged_is_the_original_base_plus_the_adapter(tmp_path, base, quantization, capsys):
    folder = write_run(tmp_path / "runs" / "first", base, quantization=quantization)
    dest = tmp_path / "out" / "合并 模型"
    assert run(folder, dest) == 0
    assert capsys.readouterr().out == f"{dest}\n"
    merged, info = AutoModelForCausalLM.from_pretrained(dest, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)(
        tokens()
    ).logits
    torch.testing.assert_close(merged(tokens()).logits, expected, rtol=0, atol=1e-4)
    assert (expected - AutoModelForCausalLM.from_pretrained(base)(tokens()).logits).abs().max() > 0.1
    ours, theirs = AutoTokenizer.from_pretrained(dest), byte_tokenizer()
    assert (
        ours.chat_template == theirs.chat_template
        and ours("珠穆朗玛峰").input_ids == theirs("珠穆朗玛峰").input_ids
    )
    assert not {"adapter_config.json", "trainer_log.jsonl", "finished.json"} & {
        file.name for file in dest.iterdir()
    }
    assert [entry.name for entry in dest.parent.iterdir()] == [dest.name]


def test_dtype_is_the_stored_one_unless_asked(tmp_path, capsys):
    saved_model(tmp_path / "f32", vocab_size=259)
    save_model(load_model(tmp_path / "f32", dtype=torch.float32), tmp_path / "base", torch.bfloat16)
    folder = write_run(tmp_path / "run", tmp_path / "base")
    assert run(folder, tmp_path / "half") == 0
    assert "sums are rounded to bfloat16; --dtype float32 keeps them exact" in capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert run(folder, tmp_path / "exact", "--dtype", "float32") == 0
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    float32_base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = peft.PeftModel.from_pretrained(float32_base, folder)(tokens()).logits
    torch.testing.assert_close(exact(tokens()).logits, expected, rtol=0, atol=1e-4)


def test_a_taken_destination_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, what in (
        ("taken", "is not empty"),
        ("taken/file", "is not a folder"),
        ("link", "is not a folder"),
    ):
        assert run(tmp_path / "absent", tmp_path / name) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: the destination") and what in err and err.count("\n") == 1
    assert (tmp_path / "taken" / "file").read_text() == "keep"


def test_an_empty_destination_is_used_with_modes_by_the_umask(tmp_path, base):
    folder = write_run(tmp_path / "run", base)
    (tmp_path / "dest").mkdir()
    before = os.umask(0o022)
    try:
        assert run(folder, tmp_path / "dest") == 0
    finally:
        os.umask(before)
    assert (tmp_path / "dest").stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "dest").iterdir()} == {0o644}


def test_the_templates_end_mark_goes_into_generation_config(tmp_path, base):
    assert run(write_run(tmp_path / "run", base), tmp_path / "dest") == 0
    written = json.loads((tmp_path / "dest" / "generation_config.json").read_text())
    end_mark = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert end_mark in written["eos_token_id"]


def test_an_adapter_without_a_tokenizer_is_merged_all_the_same(tmp_path, base, capsys):
    write_adapter(tmp_path / "adapter", base)
    assert run(tmp_path / "adapter", tmp_path / "dest") == 0
    assert "has no tokenizer" in capsys.readouterr().err
    assert (tmp_path / "dest" / "model.safetensors").is_file()


def test_failure_leaves_nothing_behind(tmp_path, base, capsys):
    folder = write_run(tmp_path / "run", base)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    assert run(folder, tmp_path / "out" / "dest") == 2
    assert "the adapter is cut short or corrupt" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_run_is_copied_and_said_so(tmp_path, base, capsys):
    folder = tmp_path / "run"
    save_model(load_model(base, dtype=torch.float32), folder, torch.float32)
    byte_tokenizer(folder)
    (folder / "config.yaml").write_text(json.dumps({"mode": "sft", "model": {"name_or_path": str(base)}}))
    (folder / "finished.json").write_text("{}")
    (folder / "checkpoint-3").mkdir()
    assert run(folder, tmp_path / "dest") == 0
    assert "nothing to merge" in capsys.readouterr().err
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "dest")
    original = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(copied(tokens()).logits, original(tokens()).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "dest").chat_template
    names = {entry.name for entry in (tmp_path / "dest").iterdir()}
    assert not {"config.yaml", "finished.json", "checkpoint-3"} & names
    assert run(folder, tmp_path / "other", "--dtype", "float32") == 2


def staged_run(root: Path, base: Path, finished: list[str]) -> Path:
    root.mkdir()
    stages = [{"name": name, "mode": "sft"} for name in ("one", "two", "three")]
    (root / "config.yaml").write_text(json.dumps({"train": {"output_dir": str(root)}, "stages": stages}))
    for name in ("one", "two"):
        write_run(root / name, base, finished=name in finished)
    return root


def test_the_last_finished_stage_is_taken(tmp_path, base):
    root = staged_run(tmp_path / "run", base, ["one", "two"])
    assert find_result(root).folder == root / "two"
    assert find_result(root / "one").folder == root / "one"
    (root / "two" / "finished.json").unlink()
    assert find_result(root).folder == root / "one"


def test_unfinished_runs_name_a_checkpoint(tmp_path, base):
    root = staged_run(tmp_path / "run", base, [])
    with pytest.raises(
        ConfigError, match=r"no stage of the run is finished \(.*one, two, three\): train it first"
    ):
        find_result(root)
    for step in (5, 40):
        write_adapter(root / "two" / f"checkpoint-{step}", base)
    with pytest.raises(ConfigError, match=r"such as .*two/checkpoint-40"):
        find_result(root)
    with pytest.raises(ConfigError, match=r"the run is not finished .*two/checkpoint-40"):
        find_result(root / "two")
    found = find_result(root / "two" / "checkpoint-40")
    assert (found.folder.name, found.base, found.tokenizer) == ("checkpoint-40", base, root / "two")


def test_what_is_no_run_is_said(tmp_path, base, capsys):
    assert run(tmp_path / "absent", tmp_path / "dest") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "dest") == 2
    assert "no run and no model" in capsys.readouterr().err
    folder = write_run(tmp_path / "run", base)
    (folder / "config.yaml").write_text("a: [")
    assert run(folder, tmp_path / "dest") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_missing_base_is_named_unless_it_lies_beside_the_run(tmp_path, base, caplog):
    folder = write_run(tmp_path / "runs" / "sft", base)
    base.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"the adapter's base model is not there .*基座"):
        find_result(folder)
    (tmp_path / "moved").rename(tmp_path / "runs" / base.name)
    assert find_result(folder).base == tmp_path / "runs" / base.name
    assert "is gone; taking" in caplog.text


def test_between_stages_the_merged_result_is_the_next_base(tmp_path, base):
    first = write_run(tmp_path / "one", base)
    assert merge.merge_run(first, base, tmp_path / "merged") == "float32"
    second = write_run(tmp_path / "two", tmp_path / "merged", quantization="nf4")
    assert run(second, tmp_path / "final") == 0
    stacked = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = peft.PeftModel.from_pretrained(stacked, second)(tokens()).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(merged(tokens()).logits, expected, rtol=0, atol=1e-4)


def test_help_and_errors_need_no_torch():
    script = (
        "import sys; from pyft import merge, chat; from pyft.command import run_command\n"
        "assert run_command(merge.main, merge._parser(), ['absent', 'dest']) == 2\n"
        "assert run_command(chat.main, chat._parser(), ['absent']) == 2\n"
        "assert run_command(chat.main, chat._parser(), ['--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: no such folder") == 2
