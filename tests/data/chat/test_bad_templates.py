"""Templates and tokenizers that cannot be used, through `python -m pyft.data`: exit code 2, one line."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
from data_command import GOOD, Command, between, line


@pytest.fixture
def command(tmp_path, bpe_folder):
    folder = tmp_path / "我的 data"
    folder.mkdir()
    return Command(folder, bpe_folder)


@pytest.fixture
def fail(command, capsys):
    return partial(command.check_failure, capsys)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Name -> the bytes of a .jinja file (None: there is no such file), exit code, what the error line says.
BAD_TEMPLATES: dict[str, tuple[bytes | None, int, str]] = {
    "absent": (None, 2, "mine.jinja"),
    "empty": (b"", 2, "mine.jinja"),
    "not UTF-8": (b"\xff\xfe", 2, "mine.jinja"),
    "broken": (b"{% for m in %}", 2, "mine.jinja"),
    "no end": (b"{% for m in messages %}{{ m.content }}\n{% endfor %}", 2, ""),
    "reads files": (TEMPLATE.encode() + b"{{ ''.__class__.__mro__ }}", 2, ""),
    "never ends": (
        TEMPLATE.encode()
        + b"{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        2,
        "",
    ),
    "raises": (b"{{ raise_exception('not today') }}" + TEMPLATE.encode(), 2, "not today"),
    "marks nothing": (
        TEMPLATE.replace("{% generation %}", "{% generation %}{% endgeneration %}")
        .replace("<|im_end|>{% endgeneration %}", "<|im_end|>")
        .encode(),
        2,
        "",
    ),
    "marks everything": (
        (
            "{% generation %}"
            + TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
            + "{% endgeneration %}"
        ).encode(),
        2,
        "",
    ),
    "leaves the end mark out": (
        TEMPLATE.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>").encode(),
        2,
        "<|im_end|>",
    ),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_bad_templates(command, fail, name):
    command.write("data.jsonl", between(line(GOOD[0])))
    content, code, message = BAD_TEMPLATES[name]
    path = command.folder / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    assert message in fail(code, f"model.template={path}")


def test_a_good_template_in_a_file(command, capsys):
    command.write("data.jsonl", between(line(GOOD[0])))
    path = command.folder / "mine.jinja"
    path.write_text(TEMPLATE)
    assert command.run(f"model.template={path}") == 0
    assert '"<|im_start|>user\\nwho?<|im_end|>' in capsys.readouterr().out


def test_templates_and_tokenizers_that_do_not_fit(command, fail, spm_file, bpe_folder):
    command.write("data.jsonl", between(line(GOOD[0])))
    assert "there is no template 'chatmk'" in fail(2, "model.template=chatmk")
    assert "brings no chat template of its own" in fail(2, "model.template=null")
    text = fail(2, f"model.tokenizer={spm_file}", "model.template=llama3_chat")
    assert "llama3_chat needs the control tokens" in text
    folder = shutil.copytree(bpe_folder, command.folder / "no eos")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings.pop("eos_token", None)
            (folder / name).write_text(json.dumps(settings))
    assert "has no eos token" in fail(2, f"model.tokenizer={folder}")


def test_a_tokenizer_without_pad_is_enough(command, capsys, bpe_folder):
    command.write("data.jsonl", between(line(GOOD[0])))
    folder = shutil.copytree(bpe_folder, command.folder / "no pad")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert command.run(f"model.tokenizer={folder}") == 0
    assert capsys.readouterr().out.count('"input_ids"') == 4
