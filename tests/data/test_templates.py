"""Golden texts of the built-in templates, agreement with transformers, masks for templates of others."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from pyft.config import ConfigError
from pyft.data.builtin_templates import BUILTIN_TEMPLATES
from pyft.data.encode import build_tokenizer
from pyft.data.templates import ChatTemplate, Message, TemplateFailure, encode_text_prompt, get_template

TALK = [
    Message("system", "S"),
    Message("user", "u1"),
    Message("assistant", " a1 "),
    Message("user", "u2\n"),
    Message("assistant", "a2"),
]
CHATML = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n a1 <|im_end|>\n"
    "<|im_start|>user\nu2\n<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
)
GOLDEN = {
    "chatml": CHATML,
    "qwen_chat": CHATML,
    "internlm2_chat": CHATML,
    "internlm_chat": "<|System|>:S\n<|User|>:u1<eoh>\n<|Bot|>: a1 <eoa>\n"
    "<|User|>:u2\n<eoh>\n<|Bot|>:a2<eoa>\n",
    "llama3_chat": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nu1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n a1 <|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nu2\n<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na2<|eot_id|>",
    "default": "<|System|>:S\n<|User|>:u1\n<|Bot|>: a1 {eos}\n<|User|>:u2\n\n<|Bot|>:a2{eos}\n",
}
ENDS = {
    "chatml": "<|im_end|>",
    "qwen_chat": "<|im_end|>",
    "internlm2_chat": "<|im_end|>",
    "internlm_chat": "<eoa>",
    "llama3_chat": "<|eot_id|>",
    "default": "<|endoftext|>",
}


def test_every_builtin_has_a_golden_text():
    assert set(GOLDEN) == set(BUILTIN_TEMPLATES) == set(ENDS)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("kind", ["bpe", "bpe_with_bos"])
def test_golden_text_and_spans(request, name, kind):
    tokenizer = request.getfixturevalue(kind)
    template = get_template(name, tokenizer)
    bos = "<s>" if kind == "bpe_with_bos" else ""
    golden = bos + GOLDEN[name].replace("{eos}", "<|endoftext|>")
    whole = template.render(TALK)
    assert whole.text == golden
    assert [whole.text[a:b] for a, b in whole.spans] == [" a1 " + ENDS[name], "a2" + ENDS[name]]
    assert template.end_mark == ENDS[name]
    assert template.render(TALK[:4], add_generation_prompt=True).text == golden[: whole.spans[1][0]]
    assert template.render(TALK[:2], add_generation_prompt=True).text == golden[: whole.spans[0][0]]


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("kind", ["bpe", "bpe_with_bos"])
def test_transformers_renders_and_masks_the_same(request, tmp_path, name, kind):
    tokenizer = request.getfixturevalue(kind)
    template = get_template(name, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    saved.chat_template = template.source
    saved.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    dicts = [{"role": m.role, "content": m.content} for m in TALK]
    assert loaded.apply_chat_template(dicts, tokenize=False) == template.render(TALK).text
    prompt = loaded.apply_chat_template(dicts[:4], tokenize=False, add_generation_prompt=True)
    assert prompt == template.render(TALK[:4], add_generation_prompt=True).text
    ids = loaded.apply_chat_template(dicts[:4], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.encode_prompt(tokenizer, dicts[:4]) == ids == template.encode_prompt(tokenizer, TALK[:4])
    # The tokenizer's own template is now this one.
    own = get_template(None, loaded)
    assert own.source == template.source
    assert own.render(TALK) == template.render(TALK)
    assert own.end_mark == template.end_mark


@pytest.mark.parametrize("name", GOLDEN)
def test_roles_without_a_place_are_refused(bpe, name):
    with pytest.raises(TemplateFailure, match="no place for the role tool"):
        get_template(name, bpe).render([Message("user", "a"), Message("tool", "b")])


def test_stop_ids(bpe):
    assert bpe.convert_ids_to_tokens(get_template("chatml", bpe).stop_token_ids(bpe)) == [
        "<|im_end|>",
        "<|endoftext|>",
    ]
    assert get_template("default", bpe).stop_token_ids(bpe) == [bpe.eos_token_id]


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


# Templates of others, cut down to what matters.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen3: earlier thinking is dropped, the last answer is opened by an empty thinking block.
QWEN3 = (
    "{%- for message in messages %}{%- if message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- else %}"
    "{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.last %}{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Llama 2: the system text inside the first question, answers trimmed, eos as end mark, strict alternation.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# The prompt opens a thinking block that the whole does not have: not a prefix, so contents are located.
THINKING_PROMPT = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = [
    Message("user", "u1"),
    Message("assistant", "a1"),
    Message("user", "u2"),
    Message("assistant", "a2 "),
]


@pytest.mark.parametrize(
    ("source", "learned"),
    [
        (QWEN2, ["a1<|im_end|>", "a2 <|im_end|>"]),
        (QWEN3, ["a1<|im_end|>", "<think>\n\n</think>\n\na2 <|im_end|>"]),
        (LLAMA2, [" a1 <|endoftext|>", " a2 <|endoftext|>"]),
        (THINKING_PROMPT, ["a1<|im_end|>", "a2<|im_end|>"]),
        (MARKED, ["a1<|im_end|>", "a2 <|im_end|>"]),
    ],
    ids=["qwen2", "qwen3", "llama2", "thinking_prompt", "marked"],
)
def test_masks_of_other_templates(bpe, source, learned):
    whole = ChatTemplate("own", source, bpe, None).render(QUESTIONS)
    assert [whole.text[a:b] for a, b in whole.spans] == learned


def test_thinking_in_answers(bpe):
    talk = [QUESTIONS[0], Message("assistant", "<think>\nhm\n</think>\n\na1"), QUESTIONS[2]]
    talk.append(Message("assistant", "<think>\nso\n</think>\n\na2"))
    whole = ChatTemplate("own", QWEN3, bpe, None).render(talk)
    learned = [whole.text[a:b] for a, b in whole.spans]
    assert learned == ["a1<|im_end|>", "<think>\nso\n</think>\n\na2<|im_end|>"]


def test_contents_that_are_part_of_the_frame_are_still_found(bpe):
    # "assistant" stands in every header too; searching for it would find the wrong place.
    talk = [
        Message("user", "assistant"),
        Message("assistant", "assistant"),
        Message("user", "a"),
        Message("assistant", "a"),
    ]
    for source in (QWEN2, THINKING_PROMPT):
        whole = ChatTemplate("own", source, bpe, None).render(talk)
        heads = [whole.text[:start] for start, _ in whole.spans]
        assert all(head.endswith("<|im_start|>assistant\n") for head in heads)
        assert [whole.text[a:b] for a, b in whole.spans] == ["assistant<|im_end|>", "a<|im_end|>"]


def test_a_template_that_rewrites_answers_is_refused(bpe):
    source = THINKING_PROMPT.replace("m.content | trim", "m.content | upper")
    with pytest.raises(TemplateFailure, match="rewrites contents"):
        ChatTemplate("own", source, bpe, None).render(QUESTIONS)


def test_a_template_that_writes_by_what_an_answer_holds_is_refused(bpe):
    source = THINKING_PROMPT.replace(
        "'<|im_end|>\\n' }}", "'<|im_end|>' + ('!' if 'a2' in m.content else '') }}"
    )
    assert "'!'" in source
    with pytest.raises(TemplateFailure, match="rewrites contents"):
        ChatTemplate("own", source, bpe, None).render(QUESTIONS)


def test_a_template_without_an_end_mark_is_refused(bpe):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="writes no control token after an answer"):
        ChatTemplate("own", source, bpe, None)


def test_a_hostile_template_is_refused(bpe):
    source = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="cannot render a question and an answer"):
        ChatTemplate("own", source, bpe, None)


@pytest.mark.parametrize("source", [None, QWEN2, THINKING_PROMPT, MARKED])
def test_spelled_control_tokens_stay_literals(bpe, source):
    template = ChatTemplate("own", source, bpe, None) if source else get_template("chatml", bpe)
    talk = [
        Message("user", "what is <|im_end|>? <|im_start|>"),
        Message("assistant", "<|im_end|> ends. <|im_end|>"),
    ]
    whole = template.render(talk)
    assert [whole.text[a:b] for a, b in whole.literals] == [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    ]
    assert [whole.text[a:b] for a, b in whole.spans] == ["<|im_end|> ends. <|im_end|><|im_end|>"]
    assert "what is <|im_end|>? <|im_start|><|im_end|>" in whole.text
