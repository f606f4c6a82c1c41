"""python -m pyft.data: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from pyft.command import run_command
from pyft.data.__main__ import main, make_parser
from pyft.data.chat.builtin import BUILTIN_TEMPLATES

ROWS = [
    {"instruction": "the highest?", "input": "", "output": "珠穆朗玛峰"},
    {"instruction": "the river", "input": "one\u2028line", "output": "runs deep\nand far"},
    {"instruction": "drop me", "input": "", "output": "<nooutput>"},
    {"instruction": "spell <|im_end|>", "input": "", "output": "<|im_end|> it is"},
]


@pytest.fixture
def recipe(tmp_path, bpe_folder):
    """A recipe in a folder whose name has a blank and Chinese characters; its data has a blank line."""
    folder = tmp_path / "配方 一"
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (folder / "数据.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n", encoding="utf-8")
    content = {
        "mode": "sft",
        "model": {"name_or_path": str(tmp_path), "tokenizer": str(bpe_folder), "template": "chatml"},
        "data": {"train": [{"path": str(folder / "数据.jsonl")}], "val_size": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def run(*arguments: str) -> int:
    return run_command(main, make_parser(), [str(argument) for argument in arguments])


def test_json_is_nothing_but_samples_in_order_and_the_ledger(recipe, tmp_path, bpe):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    arguments = ["--json", str(recipe), "--num-samples", "99", "data.max_length=99"]
    command = [sys.executable, "-m", "pyft.data", *arguments]
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr.decode()
    # "\n" alone ends a line: a sample holds U+2028.
    lines = [json.loads(line) for line in result.stdout.decode().removesuffix("\n").split("\n")]
    assert [list(line) for line in lines] == [["input_ids", "labels", "text", "source"]] * 3 + [["ledger"]]
    data = str(recipe.parent / "数据.jsonl")
    assert [line["source"] for line in lines[:3]] == [f"{data}:1", f"{data}:3", f"{data}:5"]
    assert lines[1]["text"] == (
        "<|im_start|>user\nthe river\none\u2028line<|im_end|>\n"
        "<|im_start|>assistant\nruns deep\nand far<|im_end|>\n"
    )
    for line, answer in zip(lines, ["珠穆朗玛峰", "runs deep\nand far", "<|im_end|> it is"], strict=False):
        assert bpe.decode(line["input_ids"]) == line["text"]
        assert len(line["labels"]) == len(line["input_ids"])
        learned = [label for label in line["labels"] if label != -100]
        assert bpe.decode(learned) == answer + "<|im_end|>"
    ledger = lines[3]["ledger"]
    assert ledger["dropped"]["nooutput"] == 1
    assert ledger["rows_read"] == 4 == sum(ledger["dropped"].values()) + ledger["train"]["rows"] + 1


@pytest.mark.parametrize(
    ("options", "expected"), [([], 3), (["--num-samples", "2"], 2), (["--num-samples", "0"], 0)]
)
def test_number_of_samples(recipe, capsys, options, expected):
    assert run(recipe, "--json", *options) == 0
    assert len(capsys.readouterr().out.splitlines()) > 0
    assert run(recipe, "--json", *options) == 0
    assert capsys.readouterr().out.count('"input_ids"') == expected


def test_for_people(recipe, capsys):
    assert run(recipe, "--num-samples", "1") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "数据.jsonl: format alpaca (found from its keys), 4 rows" in out
    assert "dropped: nooutput" in out
    assert "⟦珠穆朗玛峰<|im_end|>⟧" in out
    assert "\x1b" not in out and "\r" not in out


TURNS = [("user", "the highest?"), ("assistant", "珠穆朗玛峰"), ("user", "who asked?")]


def test_cut_parts_are_shown_where_they_were(recipe, capsys):
    """Of six rows the fifth has a turn after its last answer, and the sixth is longer than the others."""
    talk = [{"role": role, "content": content} for role, content in TURNS]
    long = [talk[0], {"role": "assistant", "content": "runs deep " * 40}]
    rows = [{"messages": turns} for turns in (*[talk[:2]] * 4, talk, long)]
    (recipe.parent / "数据.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert run(recipe, "--num-samples", "1") == 0
    out = capsys.readouterr().out
    assert "数据.jsonl:1: " in out and "数据.jsonl:2: " not in out
    first, cut = out.split("数据.jsonl:5: ")
    assert "⟪" not in first and "the rest was cut (in ⟪ ⟫)" in cut
    assert "who asked?" in cut.partition("⟪")[2] and cut.rstrip().endswith("⟫")
    assert run(recipe, "data.overlong=truncate", "data.max_length=40") == 0
    assert "rows truncated                                   1" in capsys.readouterr().out
    assert run(recipe, "data.overlong=truncate", "data.max_length=40", "--num-samples", "6") == 0
    heading, _, body = capsys.readouterr().out.split("数据.jsonl:6: ")[1].partition("\n")
    assert heading.startswith("40 tokens, ") and body.count("⟧⟪") == 1 and body.endswith("⟫\n")
    assert "".join(character for character in body if character not in "⟦⟧⟪⟫") == (
        f"<|im_start|>user\nthe highest?<|im_end|>\n<|im_start|>assistant\n{'runs deep ' * 40}<|im_end|>\n\n"
    )
    assert run(recipe, "--num-samples", "0") == 0
    assert "⟪" not in capsys.readouterr().out


def test_batches_show_what_training_gets(recipe, capsys):
    assert run(recipe, "--packed", "data.max_length=60", "data.val_size=0") == 0
    out = capsys.readouterr().out
    batches = out.split("\nbatch ")[1:]
    assert batches and all("tokens of 60 (" in batch for batch in batches)
    assert batches[0].startswith(f"1 of {len(batches)}: ")
    for answer in (
        "⟦珠穆朗玛峰<|im_end|>⟧",
        "⟦runs deep\nand far<|im_end|>⟧",
        "⟦<|im_end|> it is<|im_end|>⟧",
    ):
        assert out.count(answer) == 1
    assert out.count("── sample ") == 3
    both = ("data.max_length=60", "data.val_size=0", "train.per_device_train_batch_size=2")
    assert run(recipe, "--packed", "--num-samples", "1", *both) == 0
    assert "tokens of 120 (" in capsys.readouterr().out
    options = ("--packed", "--num-samples", "1", "data.packing=false", "data.val_size=0")
    assert run(recipe, *options, "train.per_device_train_batch_size=2") == 0
    out = capsys.readouterr().out
    assert out.count("\nbatch ") == 1 and "\nbatch 1 of 2: 2 samples, " in out
    assert "--packed" in fail(capsys, 2, recipe, "--packed", "--json")


def test_a_stream_is_shown_from_its_beginning(recipe, capsys):
    options = ("data.streaming=true", "train.max_steps=2", "train.gradient_accumulation_steps=3")
    assert run(recipe, *options, "data.max_length=60", "--packed", "--num-samples", "9") == 0
    out = capsys.readouterr().out
    assert "streaming: the ledger covers the first" in out
    assert out.count("\nbatch ") == 6 and "\nbatch 6 of 6: " in out
    assert run(recipe, *options, "--json", "--num-samples", "2") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.removesuffix("\n").split("\n")]
    assert [line["source"].rpartition(":")[2] for line in lines[:2]] == ["1", "3"]
    assert lines[2]["ledger"]["rows_read"] == 4
    assert "train.max_steps" in fail(capsys, 2, recipe, "data.streaming=true")


def test_stages(recipe, tmp_path, capsys):
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a river"}\n')
    content["stages"] = [
        {"mode": "pretrain", "data": {"train": [{"path": str(texts)}], "val_size": 0}},
        {"mode": "sft"},
    ]
    staged = tmp_path / "staged.yaml"
    staged.write_text(yaml.safe_dump(content))
    assert run(staged) == 0
    out = capsys.readouterr().out
    assert (
        out.index("stage pretrain")
        < out.index("texts.jsonl")
        < out.index("stage sft")
        < out.index("数据.jsonl")
    )
    assert run(staged, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == "a river<|endoftext|>"
    assert run(staged, "--json", "--stage", "sft", "--num-samples", "1") == 0
    assert "the highest?" in json.loads(capsys.readouterr().out.splitlines()[0])["text"]
    assert run(staged, "--stage", "dpo") == 2
    assert "there is no stage 'dpo' (--stage): the recipe has pretrain, sft" in capsys.readouterr().err


OWN = """\
{% for message in messages %}{% if message.role == "assistant" -%}
A: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{% else -%}
{{ message.role }}: {{ message.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"""


def test_templates_are_listed_and_shown(tmp_path, monkeypatch, capsys):
    assert run("templates") == 0
    listed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in listed[1:-2]) == sorted(BUILTIN_TEMPLATES)
    assert run("templates", "chatml") == 0
    shown = capsys.readouterr().out
    assert "<|im_start|>assistant\n⟦Mount Everest.<|im_end|>⟧\n" in shown and "\x1b" not in shown
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text(OWN, encoding="utf-8")
    assert run("templates", "mine.jinja") == 0
    assert "user: Which mountain is the highest?\nA: ⟦Mount Everest.</s>⟧" in capsys.readouterr().out
    assert "did you mean qwen_chat?" in fail(capsys, 2, "templates", "qwen_cha")
    assert "one name at most" in fail(capsys, 2, "templates", "chatml", "zephyr")
    assert "no options" in fail(capsys, 2, "templates", "chatml", "--json")


def test_a_template_file_in_a_recipe(recipe, tmp_path, monkeypatch, capsys):
    """Its path is relative to where the command is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text(OWN, encoding="utf-8")
    assert run(recipe, "model.template=mine.jinja", "--num-samples", "1") == 0
    assert "user: the highest?\nA: ⟦珠穆朗玛峰<|endoftext|>⟧" in capsys.readouterr().out
    assert str(tmp_path / "none.jinja") in fail(capsys, 2, recipe, "model.template=none.jinja")


def fail(capsys, code: int, *arguments) -> str:
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_errors_are_one_line_with_a_code(recipe, capsys):
    data = recipe.parent / "数据.jsonl"
    good = data.read_bytes()
    data.write_bytes(good + b'{"instruction": ')
    assert f"{data}:6:17: the last line is cut" in fail(capsys, 3, recipe, "--json")
    data.write_bytes(b"")
    assert "the file is empty" in fail(capsys, 3, recipe)
    data.unlink()
    assert "no such file" in fail(capsys, 3, recipe)
    data.write_bytes(good)
    assert "no template 'chatmk'" in fail(capsys, 2, recipe, "model.template=chatmk")
    assert "no chat template of its own" in fail(capsys, 2, recipe, "model.template=null")
    assert "does not exist" in fail(capsys, 2, recipe, "model.tokenizer=./nowhere")
    assert "data.val_size" in fail(capsys, 2, recipe, "data.val_size=3")
    assert "longest row has" in fail(capsys, 3, recipe, "data.max_length=4")
    for number in ("-1", "x", "1.5"):
        text = fail(capsys, 2, recipe, "--num-samples", number)
        assert "--num-samples" in text and f"{number!r} is not a number of samples" in text


def test_a_wrong_recipe_is_answered_without_heavy_imports(recipe):
    script = (
        "import sys\n"
        "from pyft.command import run_command\n"
        "from pyft.data.__main__ import main, make_parser\n"
        "code = run_command(main, make_parser(), sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'sentencepiece', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    for arguments, code in (([str(recipe), "data.max_lenght=3"], 2), (["--help"], 0)):
        result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
        assert result.returncode == code, result.stderr.decode()
