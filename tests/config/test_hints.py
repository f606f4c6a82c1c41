"""Hints for unknown names: other tools' names, other sections, and slips of the pen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pyft.config.key_path import parse_path, show_path
from pyft.config.mistakes import FOREIGN_NAMES_FILE, foreign_names, hint_for, hint_for_value
from pyft.config.modes import MODES
from pyft.config.schema import accepts_null, known_names


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("cutoff_len", "data.max_length"),
        ("micro_batch_size", "train.per_device_train_batch_size"),
        ("accumulative_counts", "train.gradient_accumulation_steps"),
        ("warmup_ratio", "train.warmup_steps"),
        ("num_epochs", "train.num_train_epochs"),
        ("max_epochs", "train.num_train_epochs"),
        ("lr", "train.learning_rate"),
        ("batch_size", "train.per_device_train_batch_size"),
        ("lora_r", "adapter.r"),
        ("lora_rank", "adapter.r"),
        ("lora_target", "adapter.target_modules"),
        ("load_in_4bit", "model.quantization: nf4"),
        ("work_dir", "train.output_dir"),
        ("output", "train.output_dir"),
        ("model_name_or_path", "model.name_or_path"),
        ("dataset", "data.train"),
        ("seq_len", "data.max_length"),
        ("max_seq_length", "data.max_length"),
        ("val_set_size", "data.val_size"),
        ("save_total", "train.save_total_limit"),
        ("chat_template", "model.template"),
        ("sample-packing", "data.packing"),
        ("dataset_map_fn", "data.train[0].map"),
        ("train_on_inputs", "data.train_on: all"),
        ("train_on_prompt", "data.train_on: all"),
        ("mask_history", "data.train_on: last"),
        ("train_on_eos", "data.train_on_eot"),
        ("dataset_num_proc", "data.num_workers"),
        ("dataset_prepared_path", "data.cache_dir"),
    ],
)
@pytest.mark.parametrize("section", ["", "train.", "model."])
def test_foreign_names(name: str, right: str, section: str) -> None:
    assert f"write {right}" in hint_for(parse_path(section + name))


def test_the_table_is_sound() -> None:
    leaves = {name[-1] for name in known_names()}
    paths = {show_path(name) for name in known_names()}
    for name, right in foreign_names().keys.items():
        assert name not in leaves, f"{name} is a name of pyft's own"
        target = re.sub(r"\[0\]", "", right.split(" ")[0].rstrip(":"))
        assert target == "nothing" or target in paths, f"{name}: {right} is not in the schema"


def test_the_other_tables_are_sound() -> None:
    source = {name[-1] for name in known_names() if name[:-1] == ("data", "train")}
    keys = foreign_names().source_keys
    assert keys and set(keys.values()) <= source and not source & set(keys)
    assert set(foreign_names().values) == {"mode", "data.train.format"}
    for name, values in foreign_names().values.items():
        allowed = MODES if name == "mode" else get_args(known_names()[tuple(name.split("."))].annotation)
        assert values and set(values.values()) <= set(allowed) and not set(allowed) & set(values)


def test_each_foreign_name_stands_once() -> None:
    """A word in two lists would be answered with one of them only."""
    tables = yaml.safe_load(FOREIGN_NAMES_FILE.read_text(encoding="utf-8"))
    for table in (tables["keys"], tables["source_keys"], *tables["values"].values()):
        words = [word for listed in table.values() for word in listed]
        assert len(set(words)) == len(words) and all(isinstance(word, str) for word in words)


def test_the_tables_are_read_for_a_mistake_only(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {name_or_path: ./m}\ndata: {train: [{path: a}]}\n", encoding="utf-8")
    script = (
        "import sys; from pyft.config.load import load_recipe; "
        "from pyft.config.mistakes import foreign_names; "
        f"load_recipe({str(recipe)!r}, sys.argv[1:]); print(foreign_names.cache_info().currsize)"
    )
    run = [sys.executable, "-c", script]
    right = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert right.stdout == "0\n"
    wrong = subprocess.run([*run, "data.cutoff_len=1"], cwd=root, capture_output=True, text=True, check=False)
    assert "write data.max_length" in wrong.stderr


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("data.train[1].type", "data.train[1].format"),
        ("data.validation[0].file_name", "data.validation[0].path"),
        ("data.train[0].system_prompt", "data.train[0].system"),
        ("data.train[0].subset", "data.train[0].name"),
    ],
)
def test_foreign_keys_of_a_source(path: str, right: str) -> None:
    assert hint_for(parse_path(path)).startswith(f"write {right}")


def test_hints_for_values() -> None:
    formats = ["messages", "sharegpt", "text"]
    for section in ("train", "validation"):
        name = ("data", section, "format")
        assert hint_for_value(name, "OpenAI", formats) == "did you mean messages? "
        assert hint_for_value(name, "txts", formats) == "did you mean text? "
        assert "kind of file" in hint_for_value(name, ".jsonl", formats)
        assert hint_for_value(name, "zzz", formats) == hint_for_value(name, 7, formats) == ""
    assert hint_for_value(("mode",), "csv", ["pretrain", "sft"]) == ""
    assert hint_for_value(("mode",), "pretraining", ["pretrain", "sft"]) == "did you mean pretrain? "


def test_warmup_ratio_says_what_a_share_is() -> None:
    assert "below 1" in hint_for(("train", "warmup_ratio"))


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("train.learnin_rate", "train.learning_rate"),
        ("train.max_length", "data.max_length"),
        ("max_length", "data.max_length"),
        ("learning_rate", "train.learning_rate"),
        ("model.r", "adapter.r"),
        ("adaptor", "adapter"),
        ("trian", "train"),
        ("data.train[3].formt", "data.train[3].format"),
        ("data.validation[1].pth", "data.validation[1].path"),
        ("data.format", "data.train[0].format"),
        ("data.formt", "data.train[0].format"),
        ("data.valsize", "data.val_size"),
        ("model.quantisation", "model.quantization"),
        ("train.evaluation_input", "train.evaluation_inputs"),
    ],
)
def test_nearest_names(path: str, right: str) -> None:
    assert hint_for(parse_path(path)) == f"did you mean {right}?"


def test_nothing_near_lists_what_there_is() -> None:
    hint = hint_for(("adapter", "zzzzzz"))
    assert "remove it" in hint and "lora_alpha" in hint


def test_every_name_is_recognised_from_a_slip() -> None:
    """Each name of the schema, without its last letter, gets an answer."""
    for name in known_names():
        if len(name[-1]) > 4:
            slip = (*name[:-1], name[-1][:-1])
            if slip not in known_names():
                assert "did you mean" in hint_for(slip) or "write" in hint_for(slip), slip


def test_where_null_is_a_value() -> None:
    assert (
        accepts_null(("adapter",))
        and accepts_null(("train", "max_steps"))
        and accepts_null(("model", "config"))
    )
    assert not accepts_null(("train", "seed")) and not accepts_null(("data",)) and not accepts_null(("mode",))
    assert accepts_null(("model", "config", "rope_scaling")) and accepts_null(("nonsense",))


def test_every_field_is_documented() -> None:
    assert [name for name, field in known_names().items() if len(name) > 1 and not field.description] == []
