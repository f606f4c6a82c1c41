"""Tools in templates: Qwen2.5's format, spelled control tokens in it, templates without a place for it."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from pyft.data.chat.bind import get_template
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message
from pyft.errors import ConfigError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says "how" it is — 天气.',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TALK = [
    Message("system", "Be brief."),
    Message("user", "Rome? 罗马?"),
    Message("assistant", "", tool_calls=(call("weather", city="罗马", days=2), call("time"))),
    Message("tool", "sunny"),
    Message("tool", '{"time": "9:00"}'),
    Message("assistant", "Once more.", tool_calls=(call("weather", city="Rome"),)),
    Message("tool", "rain"),
    Message("assistant", "It rains."),
]
# Learned stands in ⟦ ⟧; {tools} is the list of schemas.
GOLDEN = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    "{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nRome? 罗马?<|im_end|>\n"
    '<|im_start|>assistant\n⟦<tool_call>\n{"name": "weather", "arguments": {"city": "罗马", "days": 2}}\n'
    '</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n"
    '<tool_response>\n{"time": "9:00"}\n</tool_response><|im_end|>\n'
    '<|im_start|>assistant\n⟦Once more.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n'
    "</tool_call><|im_end|>⟧\n"
    "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n⟦It rains.<|im_end|>⟧\n"
).replace("{tools}", "\n".join(json.dumps(tool, ensure_ascii=False) for tool in (WEATHER, TIME)))


def with_marks(rendered) -> str:
    text = rendered.text
    for start, end in reversed(rendered.spans):
        text = text[:start] + "⟦" + text[start:end] + "⟧" + text[end:]
    return text


@pytest.mark.parametrize("name", ["chatml", "qwen_chat"])
def test_golden_text_and_spans(bpe, name):
    template = get_template(name, bpe)
    whole = template.render(TALK, tools=[WEATHER, TIME])
    assert with_marks(whole) == GOLDEN
    for span, index in zip(whole.spans, (2, 5, 7), strict=True):
        prompt = template.render(TALK[:index], tools=[WEATHER, TIME], add_generation_prompt=True)
        assert prompt.text == whole.text[: span[0]]
    assert whole.prompt_ends == tuple(start for start, _ in whole.spans)
    ids = template.encode_prompt(bpe, TALK[:5], tools=[WEATHER, TIME])
    assert bpe(whole.text, add_special_tokens=False)["input_ids"][: len(ids)] == ids


def test_tools_without_a_system_text_and_calls_without_tools(bpe):
    template = get_template("chatml", bpe)
    assert with_marks(template.render(TALK[1:], tools=[WEATHER, TIME])) == GOLDEN.replace("Be brief.\n\n", "")
    without = template.render(TALK).text
    head = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert without == head + GOLDEN[GOLDEN.index("<|im_start|>user") :].replace("⟦", "").replace("⟧", "")


def test_transformers_renders_and_masks_the_same(bpe, tmp_path):
    template = get_template("qwen_chat", bpe)
    bpe.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded.chat_template = template.source
    dicts = [{"role": m.role, "content": m.content, "tool_calls": list(m.tool_calls)} for m in TALK]
    tools = [WEATHER, TIME]
    whole = template.render(TALK, tools=tools)
    assert loaded.apply_chat_template(dicts, tools=tools, tokenize=False) == whole.text
    result = loaded.apply_chat_template(
        dicts, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [i for i, m in zip(result["input_ids"], result["assistant_masks"], strict=True) if m]
    assert loaded.decode(learned) == "".join(whole.text[a:b] for a, b in whole.spans)
    # Arguments given as JSON text, as OpenAI has them, are written as the object is.
    function = {"name": "time", "arguments": '{"zone": 1}'}
    spelled = [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    text = loaded.apply_chat_template(spelled, tokenize=False)
    assert text == template.render([Message("assistant", "", tool_calls=(call("time", zone=1),))]).text
    prompt = template.encode_prompt(bpe, dicts[:5], tools=tools)
    assert prompt == template.encode_prompt(bpe, TALK[:5], tools=tools)


def test_control_tokens_spelled_in_calls_results_and_schemas_are_text(bpe):
    template = get_template("chatml", bpe)
    mark = "<|im_end|>"
    schema = {"type": "function", "function": {"name": "f", "description": f"a{mark}", f"{mark}x": [mark]}}
    talk = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=(call("f", **{f"k{mark}": [{"v": f"<|im_start|>{mark}"}]}),)),
        Message("tool", f"{mark} r"),
        Message("assistant", "ok"),
    ]
    whole = template.render(talk, tools=[schema])
    assert json.dumps(schema) in whole.text
    spelled = [whole.text[a:b] for a, b in whole.literals]
    assert spelled == [mark] * 4 + ["<|im_start|>", mark, mark]
    assert [whole.text[a:b] for a, b in whole.spans] == [
        '<tool_call>\n{"name": "f", "arguments": {"k<|im_end|>": [{"v": "<|im_start|><|im_end|>"}]}}\n'
        "</tool_call><|im_end|>",
        "ok<|im_end|>",
    ]
    ids = template.encode_prompt(bpe, talk[:3], tools=[schema])
    # Written by the template: three turns begun and ended, and the head of the answer.
    assert ids.count(bpe.convert_tokens_to_ids("<|im_start|>")) == 5
    assert ids.count(bpe.convert_tokens_to_ids(mark)) == 4
    assert bpe.decode(ids) == whole.text[: whole.spans[1][0]]


def test_escaped_json_keeps_what_is_spelled(bpe):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0]['function'] | tojson(ensure_ascii=true) }}{% endif %}"
        "<|im_end|>\n{% endfor %}{{ tools | tojson }}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate("own", source, bpe, None)
    whole = template.render(
        [Message("user", "q"), Message("assistant", "", tool_calls=(call("f", x="é<|im_end|>"),))]
    )
    assert '"x": "\\u00e9<|im_end|>"' in whole.text
    assert [whole.text[a:b] for a, b in whole.literals] == ["<|im_end|>"]


HALF = {
    "calls": "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}",
    "results": "{{ m.content }}",
    "tools": "{{ tools | tojson if tools else '' }}",
}


@pytest.mark.parametrize("missing", [None, "calls", "results", "tools"])
def test_templates_of_others_have_a_place_for_tools_or_have_not(bpe, missing):
    parts = HALF | {missing: ""}
    source = (
        parts["tools"] + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'tool' %}"
        + parts["results"]
        + "{% else %}{{ m.content }}"
        + parts["calls"]
        + "{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate("own", source, bpe, None)
    assert template.supports_tools == (missing is None)
    if missing is None:
        assert len(template.render(TALK, tools=[WEATHER]).spans) == 3
        return
    for talk, tools in ((TALK[:3], ()), (TALK[:2], [WEATHER]), ([TALK[1], TALK[3]], ())):
        with pytest.raises(TemplateFailure, match="it has no place for tools; chatml, qwen_chat have one"):
            template.render(talk, tools=tools)
    with pytest.raises(ConfigError, match="template own refuses the conversation: it has no place for tools"):
        template.encode_prompt(bpe, TALK[:2], tools=[WEATHER])
