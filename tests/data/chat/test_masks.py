"""What is learned in templates of others: those that mark nothing, and those that rewrite what was said."""

from __future__ import annotations

import pytest

from pyft.data.chat.bind import get_template
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message

# Templates of others, cut down to what matters.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen3: thinking before the last question is dropped, answers after it are opened by a thinking block;
# results of tools count as the user's, but not as a question.
QWEN3 = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\n' + (tools | map('tojson') | join('\\n')) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- elif message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- else %}"
    "{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}"
    "{%- for call in message.tool_calls %}"
    "{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
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


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
STEPS = [
    Message("user", "u1"),
    Message("assistant", "", tool_calls=(CALL,), reasoning_content="ask first"),
    Message("tool", "sunny"),
    Message("assistant", "<think>\nnow I know\n</think>\n\nIt is sunny."),
]


def test_thinking_between_calls_is_kept_before_the_next_question(bpe):
    template = ChatTemplate("own", QWEN3, bpe, None)
    whole = template.render(STEPS)
    assert [whole.text[a:b] for a, b in whole.spans] == [
        f"<think>\nask first\n</think>\n\n{CALL_TEXT}<|im_end|>",
        "<think>\nnow I know\n</think>\n\nIt is sunny.<|im_end|>",
    ]
    assert whole.prompt_ends == tuple(start for start, _ in whole.spans)


@pytest.mark.parametrize("source", [None, QWEN2, QWEN3])
def test_reasoning_has_a_place_or_is_refused(bpe, source):
    template = ChatTemplate("own", source, bpe, None) if source else get_template("chatml", bpe)
    talk = [QUESTIONS[0], Message("assistant", "a1", reasoning_content="hm")]
    assert template.supports_reasoning == (source == QWEN3)
    if source == QWEN3:
        whole = template.render(talk)
        assert whole.text[slice(*whole.spans[0])] == "<think>\nhm\n</think>\n\na1<|im_end|>"
        return
    with pytest.raises(TemplateFailure, match="no place for reasoning_content"):
        template.render(talk)


def test_turns_that_lose_their_thinking_or_name_are_counted(bpe):
    thought = Message("assistant", "<think>\nhm\n</think>\n\na1")
    named = Message("user", "q2", name="Li")
    last = Message("assistant", "a2", reasoning_content="so")
    qwen3, own = ChatTemplate("own", QWEN3, bpe, None), get_template("chatml", bpe)
    # Thinking before the last question is gone, and nobody's name is written.
    assert qwen3.render([*QUESTIONS[:1], thought]).turns_shortened == 0
    assert qwen3.render([*QUESTIONS[:1], thought, Message("user", "q2"), last]).turns_shortened == 1
    assert qwen3.render([*QUESTIONS[:1], thought, named, last]).turns_shortened == 2
    # A built-in template writes contents as they are.
    assert own.render([*QUESTIONS[:1], thought, named, Message("assistant", "a2")]).turns_shortened == 1
    calls = ({"type": "function", "function": {"name": "f", "arguments": {}}},)
    answered = [Message("assistant", "", tool_calls=calls), Message("tool", "1", name="f")]
    assert own.render([*QUESTIONS[:1], *answered, Message("assistant", "a2")]).turns_shortened == 0


def test_a_rewritten_history_gets_the_labels_of_what_is_rendered(bpe):
    # With a second question the thinking of the first steps is gone, and the second step's prompt, which had
    # it, is no prefix any more.
    template = ChatTemplate("own", QWEN3, bpe, None)
    talk = [*STEPS, Message("user", "u2"), Message("assistant", " It is sunny.")]
    whole = template.render(talk)
    assert "ask first" not in whole.text and "now I know" not in whole.text
    assert [whole.text[a:b] for a, b in whole.spans] == [
        f"{CALL_TEXT}<|im_end|>",
        "It is sunny.<|im_end|>",
        "<think>\n\n</think>\n\n It is sunny.<|im_end|>",
    ]
    starts = [start for start, _ in whole.spans]
    assert whole.prompt_ends == (starts[0], None, starts[2])
    prompt = template.render(talk[:3], add_generation_prompt=True).text
    assert not whole.text.startswith(prompt)


def test_a_rewritten_call_without_a_text_is_found_by_its_head(bpe):
    template = ChatTemplate("own", QWEN3, bpe, None)
    second = Message("assistant", "", tool_calls=(CALL, CALL))
    talk = [*STEPS[:3], second, Message("tool", "rain"), *QUESTIONS[2:]]
    whole = template.render(talk)
    assert [whole.text[a:b] for a, b in whole.spans] == [
        f"{CALL_TEXT}<|im_end|>",
        f"{CALL_TEXT}{CALL_TEXT}<|im_end|>",
        "<think>\n\n</think>\n\na2 <|im_end|>",
    ]
    assert whole.prompt_ends[1] is None


def test_a_spelled_head_in_a_rewritten_history_is_not_taken_for_one(bpe):
    head = "<|im_start|>assistant\n"
    spelled = {"type": "function", "function": {"name": "weather", "arguments": {"city": head}}}
    talk = [
        STEPS[0],
        Message("assistant", f"{head}a", tool_calls=(spelled,), reasoning_content="x"),
        STEPS[2],
        Message("assistant", "", tool_calls=(spelled,)),
        *QUESTIONS[2:],
    ]
    whole = ChatTemplate("own", QWEN3, bpe, None).render(talk)
    assert whole.text[: whole.spans[1][0]].endswith("</tool_response><|im_end|>\n" + head)
    assert whole.text[slice(*whole.spans[0])].startswith(f"{head}a<tool_call>")
    # Twice in the first turn's content and call, once in the second's; the arguments are JSON: no line break.
    assert [whole.text[a:b] for a, b in whole.literals] == ["<|im_start|>"] * 3


def test_a_template_that_drops_calls_is_refused(bpe):
    source = QWEN3.replace("in message.tool_calls", "in (message.tool_calls or [])[:1]")
    template = ChatTemplate("own", source, bpe, None)
    other = {"type": "function", "function": {"name": "traffic", "arguments": {}}}
    talk = [STEPS[0], Message("assistant", "", tool_calls=(CALL, other))]
    with pytest.raises(TemplateFailure, match="the answer of turn 2 is not found"):
        template.render(talk)


def test_a_call_that_ends_in_another_way_is_refused(bpe):
    source = QWEN3.replace(
        "{{- '<|im_end|>\\n' }}{%- endif %}",
        "{{- '\\n' if message.tool_calls else '<|im_end|>\\n' }}{%- endif %}",
    )
    assert source != QWEN3
    template = ChatTemplate("own", source, bpe, None)
    with pytest.raises(TemplateFailure, match=r"no <\|im_end\|> follows the call of turn 2"):
        template.render(STEPS)


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
    source = THINKING_PROMPT.replace(
        "m.content | trim", "(m.content | upper if loop.index == 2 else m.content)"
    )
    with pytest.raises(TemplateFailure, match="rewrites contents"):
        ChatTemplate("own", source, bpe, None).render(QUESTIONS)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("m.role + ", "m.role + '' if m.role == 'system' else m.role + ", "system text of turn 1"),
        ("m.content | trim", "(m.content | upper if m.role == 'user' else m.content)", "user text of turn 2"),
    ],
)
def test_a_template_that_leaves_out_what_somebody_said_is_refused(bpe, old, new, what):
    source = THINKING_PROMPT.replace(old, new)
    assert source != THINKING_PROMPT
    with pytest.raises(TemplateFailure, match=f"it leaves out the {what}"):
        ChatTemplate("own", source, bpe, None).render([Message("system", "s!"), *QUESTIONS])


def test_a_template_that_writes_by_what_an_answer_holds_is_refused(bpe):
    source = THINKING_PROMPT.replace(
        "'<|im_end|>\\n' }}", "'<|im_end|>' + ('!' if 'a2' in m.content else '') }}"
    )
    assert "'!'" in source
    with pytest.raises(TemplateFailure, match="rewrites contents"):
        ChatTemplate("own", source, bpe, None).render(QUESTIONS)


@pytest.mark.parametrize("source", [None, QWEN2, QWEN3, THINKING_PROMPT, MARKED])
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
    thought = "<think>\n\n</think>\n\n" if source == QWEN3 else ""
    learned = [whole.text[a:b] for a, b in whole.spans]
    assert learned == [f"{thought}<|im_end|> ends. <|im_end|><|im_end|>"]
    assert "what is <|im_end|>? <|im_start|><|im_end|>" in whole.text
