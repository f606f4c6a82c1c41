"""The tokenizer of a recipe, built from all that its stages learn from."""

from __future__ import annotations

import json

import pytest

from pyft.data import recipe_tokenizer
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.errors import ConfigError, DataError

TALK = [{"role": "user", "content": "zebra?"}, {"role": "assistant", "content": "okapi"}]
BUILT = {
    "name_or_path": None,
    "from_scratch": True,
    "config": {"model_type": "llama"},
    "tokenizer": {"type": "bpe", "vocab_size": 300},
}


@pytest.fixture
def texts(monkeypatch):
    """What a tokenizer is built from, in place of building it."""
    seen: list[str] = []
    build = recipe_tokenizer.build_tokenizer

    def record(corpus, **options):
        seen.extend(corpus)
        return build(seen, **options)

    monkeypatch.setattr(recipe_tokenizer, "build_tokenizer", record)
    return seen


def build_for(recipe):
    return tokenizer_for(recipe, recipe.stages[0])


def test_every_source_is_read_once_as_it_says(make_recipe, write_rows, tmp_path, texts):
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "川"}}}
    talks = write_rows(
        [
            {"messages": TALK},
            {
                "messages": [
                    *TALK,
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "here"},
                ],
                "tools": [{"type": "function", "function": {"name": "find", "description": "finds"}}],
            },
        ],
        "talks.jsonl",
    )
    renamed = write_rows([{"ask": "gnu", "say": "lion", "note": "unread"}], "renamed.jsonl")
    columns = {"instruction": "ask", "output": "say"}
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "folder" / name).write_text(f"text of {name}\n", encoding="utf-8")
    sources = [
        {"path": str(talks)},
        {"path": str(talks), "weight": 2.0, "system": "s"},
        {"path": str(renamed), "format": "alpaca", "columns": columns},
        {"path": str(tmp_path / "folder")},
    ]
    tokenizer = build_for(make_recipe(sources, tmp_path, model=BUILT | {"template": "qwen_chat"}))
    assert texts[:2] == ["zebra?", "okapi"]
    assert [text for text in texts[2:] if "find" not in text] == [
        *("zebra?", "okapi", "", "here"),
        *("gnu", "lion"),
        *("text of a.txt\n", "text of b.txt\n"),
    ]
    described, called = (json.loads(text) for text in texts if "find" in text)
    assert described[0]["function"]["description"] == "finds"
    assert called[0]["function"]["arguments"] == {"what": "川"}
    assert sum("川" in text for text in texts) == 1, "written as itself, not as an escape"
    assert {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.added_tokens_encoder)


def test_a_bad_record_is_passed_over_where_the_recipe_says_so(make_recipe, tmp_path, texts):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps({"messages": TALK})}\n{{"messages": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl:2"):
        build_for(make_recipe(path, tmp_path, model=BUILT))
    texts.clear()
    build_for(make_recipe(path, tmp_path, model=BUILT, data={"on_bad_record": "skip"}))
    assert texts == ["zebra?", "okapi"]


def test_control_tokens_of_a_template_file(make_recipe, write_rows, tmp_path):
    source = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|over|>{% endgeneration %}{% else %}{{ m.content }}<|over|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    path = tmp_path / "mine.jinja"
    path.write_text(source, encoding="utf-8")
    recipe = make_recipe(write_rows([{"messages": TALK}]), tmp_path, model=BUILT | {"template": str(path)})
    tokenizer = build_for(recipe)
    assert {"<|turn|>", "<|over|>"} <= set(tokenizer.added_tokens_encoder)
    assert tokenizer.chat_template == source


def test_a_model_folder_that_is_not_there(make_recipe, write_rows, tmp_path):
    recipe = make_recipe(
        write_rows([{"messages": TALK}]),
        "unused",
        model={"tokenizer": None, "name_or_path": str(tmp_path / "no")},
    )
    with pytest.raises(ConfigError, match=r"no such model folder \(model\.name_or_path"):
        build_for(recipe)
