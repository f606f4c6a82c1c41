"""The list of templates, and one of them on a small conversation."""

from __future__ import annotations

import re

import pytest

from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.show.templates import list_templates, show_template
from pyft.errors import ConfigError


def test_the_list_names_each_with_what_it_needs():
    lines = list_templates().splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(BUILTIN_TEMPLATES)]}
    assert set(rows) == set(BUILTIN_TEMPLATES)
    assert rows["qwen_chat"].split() == ["qwen_chat", "<|im_end|>", "yes", "<|im_start|>", "<|im_end|>"]
    assert rows["default"].split() == ["default", "eos", "none,", "it", "is", "plain", "text"]
    assert rows["gemma"].split() == ["gemma", "<end_of_turn>", "<start_of_turn>", "<end_of_turn>"]
    assert "NAME" in lines[-1] and ".jinja" in lines[-1]


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_every_built_in_is_shown(name):
    shown = show_template(name, colour=False)
    learned = re.findall("⟦(.*?)⟧", shown.partition("\n")[2], re.DOTALL)
    end = BUILTIN_TEMPLATES[name].end_mark or "</s>"
    assert [text.strip().removesuffix(end).strip() for text in learned[:2]] == ["Mount Everest.", "K2."]
    assert all(text.endswith(end) for text in learned)
    assert "Answer briefly." in shown and "And the second?" in shown
    assert shown.count("<s>") == shown.count("\n\n<s>") + 1, "the legend, and once at the start of each text"
    assert ("with tools:" in shown) == BUILTIN_TEMPLATES[name].supports_tools
    assert "\x1b" not in shown


def test_colours():
    shown = show_template("chatml", colour=True)
    assert "\x1b[32mMount Everest.<|im_end|>\x1b[0m" in shown
    assert "⟦" not in shown
    plain = re.sub(r"\x1b\[\d+m", "", shown).partition("\n")[2]
    assert plain == re.sub("[⟦⟧]", "", show_template("chatml", colour=False).partition("\n")[2])


def test_a_file_is_shown_and_steers_no_terminal(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "\x1b[2J\u202e\u3000{{ '\\udc80' }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}",
        encoding="utf-8",
    )
    shown = show_template(str(path), colour=False)
    assert "\x1b" not in shown and "\\x1b[2J\\u202e\u3000\\udc80" in shown
    assert "(without a system text: System role not supported)" in shown
    assert "<start_of_turn>assistant\n⟦K2.<end_of_turn>⟧" in shown


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ messages[0].content }}", "writes no control token"),
        ("", "empty"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path, source, why):
    path = tmp_path / "own.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=why):
        show_template(str(path), colour=False)


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="did you mean vicuna"):
        show_template("vicunya", colour=False)
