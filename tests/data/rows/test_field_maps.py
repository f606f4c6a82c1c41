"""Every field map reads rows as its data set has them."""

from __future__ import annotations

import pytest
from row_files import fail, read

from pyft.config.schema import DataSource
from pyft.data.rows.field_maps import FIELD_MAPS, get_map
from pyft.data.rows.formats import iter_rows
from pyft.data.rows.registry import CONVERTERS, KEYS
from pyft.errors import ConfigError

# Rows with the keys of the published data sets, the question and answer they hold, and keys nothing reads.
SAMPLES: dict[str, tuple[dict, list[str], set[str]]] = {
    "alpaca": ({"instruction": "q", "input": "x", "output": "a", "text": "q x a"}, ["q\nx", "a"], {"text"}),
    "alpaca_zh": (
        {
            "instruction_zh": "问",
            "input_zh": "料",
            "output_zh": "答",
            "instruction": "q",
            "input": "x",
            "output": "a",
        },
        ["问\n料", "答"],
        {"instruction", "input", "output"},
    ),
    "code_alpaca": ({"prompt": "q", "completion": "a"}, ["q", "a"], set()),
    "arxiv": ({"abstract": "q", "title": "a", "id": "1"}, ["q", "a"], {"id"}),
    "colors": ({"color": "#ff0000", "description": "red"}, ["red", "#ff0000"], set()),
    "crime_kg_assitant": ({"input": "q", "output": "a"}, ["q", "a"], set()),
    "law_reference": ({"question": "q", "answer": "a", "reference": ["r"]}, ["q", "a"], {"reference"}),
    "medical": ({"instruction": "q", "input": "", "output": "a"}, ["q", "a"], set()),
    "sql": (
        {"question": "how many?", "context": "CREATE TABLE t (a INT)", "answer": "SELECT COUNT(*) FROM t"},
        ["CREATE TABLE t (a INT)\nhow many?", "SELECT COUNT(*) FROM t"],
        set(),
    ),
    "tiny_codes": ({"prompt": "q", "response": "a", "adjective": "x"}, ["q", "a"], {"adjective"}),
    "stack_exchange": (
        {"qid": 1, "question": "q", "response_j": "a", "response_k": "b"},
        ["q", "a"],
        {"qid", "response_k"},
    ),
    "openorca": (
        {"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
        ["s", "q", "a"],
        {"id"},
    ),
    "oasst1": (
        {"text": "### Human: q\n### 1. x### Assistant: a ### Human: q2\n\n### Assistant:a2"},
        ["q\n### 1. x", "a", "q2", "a2"],
        set(),
    ),
    "wizardlm": (
        {"idx": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ["q", "a"],
        {"idx"},
    ),
    "openai": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ["q", "a"],
        set(),
    ),
}


def test_every_map_has_a_sample():
    assert SAMPLES.keys() == FIELD_MAPS.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_maps(write_rows, name):
    row, contents, unused = SAMPLES[name]
    file = read(write_rows, [row], map=name)
    assert [turn.content for turn in file.rows[0].messages] == contents
    assert set(file.unused) == unused
    assert file.format.name in CONVERTERS
    assert (file.format.map, file.format.detected) == (name, False)
    assert file.format.system == FIELD_MAPS[name].system
    assert file.format.columns.keys() <= set(KEYS[file.format.name])


def test_what_the_source_says_wins_over_its_map(write_rows):
    rows = [{"question": "q", "reply": "a", "context": "s"}]
    file = read(
        write_rows, rows, map="openorca", columns={"response": "reply", "system": "context"}, system="t"
    )
    assert [turn.content for turn in file.rows[0].messages] == ["s", "q", "a"]
    assert (file.format.name, file.format.system) == ("query", "t")
    rows = [{"question": "q", "answer": "a", "context": "CREATE TABLE t (a INT)"}]
    file = read(write_rows, rows, "prompt", map="sql", columns={"prompt": "question", "completion": "answer"})
    assert [turn.content for turn in file.rows[0].messages] == ["q", "a"]
    assert read(write_rows, rows, map="sql", system="").format.system == ""


def test_marked_text(write_rows):
    texts = [
        "### Human: one### two\n#### Assistant: none\n### Assistant: a",
        "\n### Human: q ### Assistant: a",
        "### Human:q\n###Assistant:a",
    ]
    rows = read(write_rows, [{"text": text} for text in texts], map="oasst1").rows
    assert [[(turn.role, turn.content) for turn in row.messages] for row in rows] == [
        [("user", "one### two\n#### Assistant: none"), ("assistant", "a")],
        [("user", "q"), ("assistant", "a")],
        [("user", "q"), ("assistant", "a")],
    ]
    assert fail(write_rows, [{"text": "a"}], map="oasst1").startswith(
        "1: text does not begin with `### Human:`"
    )
    message = fail(write_rows, [{"text": "Hi ### Human: q"}], map="oasst1")
    assert message.startswith("1: text does not begin with")
    message = fail(write_rows, [{"text": "### Human: ### Assistant: a"}], map="oasst1")
    assert message.startswith("1: turn 1 of the text is empty")


def test_a_map_for_other_data(write_rows):
    message = fail(write_rows, [{"prompt": "q", "completion": "a"}], map="openorca")
    assert message.startswith(
        " no row has the key 'question' that map openorca names for query (keys found: prompt, completion)"
    )


def test_unknown_map(write_rows):
    with pytest.raises(ConfigError) as caught:
        get_map("open_orca")
    assert caught.value.exit_code == 2
    (message,) = caught.value.messages
    assert message.startswith(
        "there is no field map 'open_orca' (data.train[].map): did you mean openorca? There "
    )
    assert all(name in message for name in FIELD_MAPS)
    path = write_rows([{"text": "a"}])
    with pytest.raises(ConfigError, match="write one of alpaca, "):
        list(iter_rows(DataSource(path=str(path), map="zzz")))


def test_maps_are_not_changed_by_their_users():
    get_map("openorca")[1]["query"] = "other"
    assert get_map("openorca")[1]["query"] == "question"
