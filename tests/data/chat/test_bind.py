"""Templates by name, from files and from tokenizers: what is found and what is refused."""

from __future__ import annotations

import pickle

import pytest

from pyft.data.chat.bind import encode_text_prompt, get_template, trained_template
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.template_names import find_template
from pyft.data.rows.row import Message
from pyft.data.tokenizers.load import build_tokenizer
from pyft.data.tokenizers.view import TokenizerView
from pyft.errors import ConfigError


def test_unknown_name(bpe):
    with pytest.raises(
        ConfigError, match=r"no template 'chatmk'.*did you mean chatml.*default.*internlm_chat"
    ):
        get_template("chatmk", bpe)


def test_missing_control_tokens():
    tokenizer = build_tokenizer(["a b"], vocab_size=300, control_tokens=["<|im_end|>"])
    with pytest.raises(ConfigError, match=r"chatml needs the control tokens <\|im_start\|>, which"):
        get_template("chatml", tokenizer)
    assert get_template("default", tokenizer).end_mark == "<|endoftext|>"


def test_no_template_of_its_own(bpe):
    with pytest.raises(ConfigError, match=r"no chat template of its own: name a built-in one .*chatml"):
        get_template(None, bpe)


def test_no_eos():
    tokenizer = build_tokenizer(["a b"], vocab_size=300)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos"):
        get_template("default", tokenizer)


def test_prompt_for_a_plain_text(bpe, bpe_with_bos):
    assert encode_text_prompt(bpe, "the river") == bpe("the river")["input_ids"]
    spelled = encode_text_prompt(bpe, "a <|im_end|> b")
    assert bpe.convert_tokens_to_ids("<|im_end|>") not in spelled
    assert bpe.decode(spelled) == "a <|im_end|> b"


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [Message("user", "q"), Message("assistant", " a ")]


def test_a_template_without_an_end_mark_is_refused(bpe):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="writes no control token after an answer"):
        ChatTemplate("own", source, bpe, None)


def test_a_hostile_template_is_refused(bpe):
    source = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="cannot render a question and an answer"):
        ChatTemplate("own", source, bpe, None)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "<|im_end|>\n{% endgeneration %}",
            "{% endgeneration %}<|im_end|>\n",
            r"leaves <\|im_end\|> out of what is",
        ),
        (
            "{% generation %}{{ m.content }}<|im_end|>",
            "{{ m.content }}<|im_end|>{% generation %}",
            "leave the answer out",
        ),
        (
            "{% if m.role == 'assistant' %}",
            "{% if m.role == 'nobody' %}",
            "marks 0 generations in 2 assistant turns",
        ),
        ("{% if m.role == 'assistant' %}", "{% if true %}", "marks 4 generations in 2 assistant turns"),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}",
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>{{ m.role }}\n",
            "cover more than the answer",
        ),
    ],
)
def test_marks_that_would_make_a_wrong_mask_are_refused(bpe, old, new, why, tmp_path):
    source = MARKED.replace(old, new)
    assert source != MARKED
    path = tmp_path / "own.jinja"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=f"own.jinja chat template cannot be used: .*{why}.*templates lists them"
    ):
        get_template(str(path), bpe)


def test_marks_around_everything_are_refused(bpe, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% generation %}"
        + MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        + "{% endgeneration %}"
    )
    with pytest.raises(ConfigError, match="marks 1 generations in 2 assistant turns"):
        get_template(str(path), bpe)


def test_marks_in_a_macro_are_where_their_text_goes(bpe, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% macro say(m) %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ say(m) }}{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    whole = get_template(str(path), bpe).render([*TALK, Message("user", "q2"), Message("assistant", "a2")])
    assert [whole.text[a:b] for a, b in whole.spans] == [" a <|im_end|>", "a2<|im_end|>"]


def test_tokens_that_the_template_writes_are_control_tokens_though_not_special():
    # <|im_start|> is an ordinary added token here, and so is <think>, a word that answers write.
    tokenizer = build_tokenizer(["a b c"] * 9, vocab_size=300, control_tokens=["<|im_end|>"])
    tokenizer.add_tokens(["<|im_start|>", "<think>", "  ", "assistant"])
    template = ChatTemplate("own", MARKED, tokenizer, None)
    assert template.control_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    talk = [Message("user", "<|im_start|> <think>"), TALK[1]]
    assert [template.render(talk).text[a:b] for a, b in template.render(talk).literals] == ["<|im_start|>"]


@pytest.mark.parametrize("name", ["chatml", "own"])
def test_a_template_can_be_sent_to_another_process(bpe, name):
    template = get_template("chatml", bpe) if name == "chatml" else ChatTemplate("own", MARKED, bpe, None)
    before = template.render(TALK)
    copy = pickle.loads(pickle.dumps(template))
    assert copy.render(TALK) == before
    assert (copy.name, copy.source, copy.end_mark) == (template.name, template.source, template.end_mark)
    assert copy.control_tokens == template.control_tokens
    assert copy.supports_tools == template.supports_tools == (name == "chatml")


@pytest.mark.parametrize("name", ["chatml", "default", "gemma", None])
def test_a_view_of_the_tokenizer_does(bpe_with_bos, name):
    bpe_with_bos.chat_template = MARKED
    view = TokenizerView.from_tokenizer(bpe_with_bos)
    template, other = get_template(name, bpe_with_bos), get_template(name, view)
    assert other.render(TALK) == template.render(TALK)
    assert other.stop_token_ids(view) == template.stop_token_ids(bpe_with_bos)
    assert other.encode_prompt(view, TALK[:1]) == template.encode_prompt(bpe_with_bos, TALK[:1])
    bpe_with_bos.chat_template = None


def test_a_file(bpe, tmp_path):
    folder = tmp_path / "mit Leerzeichen 模板"
    folder.mkdir()
    path = folder / "own.jinja"
    path.write_text(MARKED, encoding="utf-8-sig")
    template = get_template(str(path), bpe)
    assert (template.source, template.name, template.end_mark) == (MARKED, str(path), "<|im_end|>")
    assert (
        template.render(TALK).text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n a <|im_end|>\n"
    )
    # What a tokenizer built for it needs.
    assert find_template(str(path)).control_tokens == ("<|im_start|>", "<|im_end|>")
    # A run trained with a file has its text in the tokenizer beside the weights; the file may be gone.
    path.unlink()
    bpe.chat_template = MARKED
    assert trained_template("sft", str(path), bpe).source == MARKED
    bpe.chat_template = None
    assert trained_template("sft", str(path), bpe) is None


def test_tokens_of_a_file_are_those_it_spells_but_for_pairs_of_tags(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "<start_of_turn>{{ '<end_of_turn>' }}<tool_call></tool_call><think></think><|end|><function-name>"
    )
    assert set(find_template(str(path)).control_tokens) == {"<start_of_turn>", "<end_of_turn>", "<|end|>"}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "no such template file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.write_bytes(b"ab\xff{{"), "it is not UTF-8 at byte 2"),
        (lambda path: path.write_text("{% if %}"), "it is not valid Jinja in line 1"),
        (
            lambda path: path.write_text("{{ messages[0].nothing.at_all }}"),
            "cannot render a question and an answer",
        ),
        (
            lambda path: path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}"),
            "writes no control token",
        ),
    ],
)
def test_files_that_are_no_templates(bpe, tmp_path, make, why):
    path = tmp_path / "own.jinja"
    make(path)
    with pytest.raises(ConfigError, match=why) as caught:
        get_template(str(path), bpe)
    assert str(path) in str(caught.value) and "model.template" in str(caught.value)
    assert len(caught.value.messages) == 1 and "\n" not in caught.value.messages[0]


def test_the_template_a_run_was_trained_with(bpe):
    assert trained_template("sft", "chatml", bpe).name == "chatml"
    assert trained_template("pretrain", "chatml", bpe) is None
    assert trained_template(None, None, bpe) is None
