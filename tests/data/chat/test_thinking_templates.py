"""Templates of models that think or call: tags that the template writes too, prompts that are no prefix,
results of tools inside an answer; and what they leave out, however it is worded."""

from __future__ import annotations

import copy
import json

import pytest

from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message
from pyft.errors import ConfigError

HEAD = "<|im_start|>assistant\n"
QUESTION = Message("user", "2+2?")
# Qwen3.5's way: the head of the last answer opens the thinking part, which the answer goes on with.
OPENS_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>') | last if parts | length > 1 else '' %}"
    "{{ '<think>\\n' + thought | trim + '\\n</think>\\n\\n' + (parts | last) | trim }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# DeepSeek R1's: thinking is dropped from what stands, while the prompt asks for it.
DROPS_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content.split('</think>') | last) }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# Gemma 4's: a call, the tool's result and what follows are one turn.
_RESULT = "{% if not loop.last and loop.nextitem.role == 'tool' %}{{ 'response:' + loop.nextitem.content }}"
RESULT_IN_TURN = (
    "{{ tools | tojson if tools else '' }}"
    "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.tool_calls %}{{ 'call:' + (m.tool_calls[0].function | tojson) }}"
    f"{_RESULT}{{% endif %}}"
    "{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


@pytest.fixture(scope="module")
def thinking(bpe):
    """A tokenizer whose thinking tags are tokens, but not special ones."""
    tokenizer = copy.deepcopy(bpe)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def learned(template: ChatTemplate, talk: list[Message], **options) -> list[str]:
    whole = template.render(talk, **options)
    return [whole.text[start:end] for start, end in whole.spans]


def test_an_answer_writes_the_thinking_part_that_its_head_opens(thinking):
    template = ChatTemplate("own", OPENS_THINKING, thinking, None)
    whole = template.render([QUESTION, Message("assistant", "<think>\nadd\n</think>\n\n4")])
    assert whole.text.endswith(f"{HEAD}<think>\nadd\n</think>\n\n4<|im_end|>\n")
    assert [whole.text[a:b] for a, b in whole.spans] == ["add\n</think>\n\n4<|im_end|>"]
    assert not whole.literals and whole.turns_shortened == 0


def test_a_user_who_spells_a_thinking_tag_does_not_write_the_token(thinking):
    template = ChatTemplate("own", OPENS_THINKING, thinking, None)
    whole = template.render([Message("user", "what is <think>?"), Message("assistant", "a tag")])
    assert [whole.text[a:b] for a, b in whole.literals] == ["<think>"]
    ids = template.encode_prompt(thinking, [Message("user", "what is <think>?")])
    assert ids.count(thinking.convert_tokens_to_ids("<think>")) == 1
    # Nor does an answer end itself.
    whole = template.render([QUESTION, Message("assistant", "say <|im_end|>")])
    assert [whole.text[a:b] for a, b in whole.literals] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("<think>\nadd\n</think> is four", " is four<|im_end|>"),
        ("<think>\nadd\n</think>\n\n4", "\n\n4<|im_end|>"),
        ("<think>\nadd\n</think>4", "4<|im_end|>"),
        (" 4", " 4<|im_end|>"),
    ],
)
def test_blanks_that_begin_what_is_kept_are_learned(thinking, content, answer):
    template = ChatTemplate("own", DROPS_THINKING, thinking, None)
    assert learned(template, [QUESTION, Message("assistant", content)]) == [answer]


def test_marks_that_take_in_the_head_are_refused_whatever_the_prompt(thinking):
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    with pytest.raises(ConfigError, match="cover more than the answer"):
        ChatTemplate("own", source, thinking, None).check_marks()
    moved = "<|im_start|>assistant\n{% generation %}"
    right = source.replace("{% generation %}<|im_start|>assistant\n", moved)
    ChatTemplate("own", right, thinking, None).check_marks()


def test_results_of_tools_inside_an_answer_are_refused_and_never_learned(thinking):
    template = ChatTemplate("own", RESULT_IN_TURN, thinking, None)
    call = Message("assistant", "let me see", tool_calls=(CALL,))
    talk = [QUESTION, call, Message("tool", "SECRET"), Message("assistant", "It is sunny.")]
    with pytest.raises(TemplateFailure, match="writes the tool text of turn 3 into the assistant's turn"):
        template.render(talk, tools=[TOOL])
    # Without a result there is nothing to mistake.
    text = "call:" + json.dumps(CALL["function"]) + "let me see<|im_end|>"
    assert learned(template, talk[:2], tools=[TOOL]) == [text]


def test_a_result_that_the_answer_quotes_is_no_mistake(thinking):
    source = RESULT_IN_TURN.replace("{% if m.role != 'tool' %}", "{% if true %}")
    source = source.replace(_RESULT + "{% endif %}", "")
    template = ChatTemplate("own", source, thinking, None)
    call = Message("assistant", "", tool_calls=(CALL,))
    talk = [QUESTION, call, Message("tool", "sunny"), Message("assistant", "It is sunny.")]
    assert learned(template, talk, tools=[TOOL])[1] == "It is sunny.<|im_end|>"


def test_a_text_that_another_one_holds_is_missed_all_the_same(thinking):
    source = DROPS_THINKING.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    assert source != DROPS_THINKING
    template = ChatTemplate("own", source, thinking, None)
    talk = [Message("system", "Be brief"), Message("user", "Be brief: 2+2?"), Message("assistant", "4")]
    with pytest.raises(TemplateFailure, match="leaves out the system text of turn 1"):
        template.render(talk)
    thought = Message("assistant", "<think>four</think>4")
    template = ChatTemplate("own", DROPS_THINKING, thinking, None)
    assert template.render([Message("user", "what is four"), thought]).turns_shortened == 1
    assert (
        template.render([Message("user", "what is four"), Message("assistant", "four")]).turns_shortened == 0
    )
