"""One conversation in every format and kind of file: the ids and labels of its text, written by hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from labelled import chatml, label
from pyarrow import parquet

from pyft.data.chat.bind import get_template
from pyft.data.prepare import prepare
from pyft.data.recipe_tokenizer import tokenizer_for

SYSTEM = "You answer briefly."
Q1, A1 = "Which mountain is  the highest?", "珠穆朗玛峰, in the Himalaya."
INSTRUCTION, INPUT = "How high is it?", "in metres: 1,000 = 1 km"
Q2, A2 = f"{INSTRUCTION}\n{INPUT}", "It's 8848 m,\nor 8.8 km 😀"
WORSE = "I don't know."
MULTI = [("system", SYSTEM), ("user", Q1), ("assistant", A1), ("user", Q2), ("assistant", A2)]
SINGLE = [("system", SYSTEM), ("user", Q2), ("assistant", A2)]


def messages(turns: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(turns: list[tuple[str, str]]) -> list[dict]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": content} for role, content in turns]


def with_flag(turns: list[dict], key: str, *flags: object) -> list[dict]:
    """Give the assistant's turns a flag each, in order."""
    given = iter(flags)
    answers = ("assistant", "gpt")
    return [
        turn | ({key: next(given)} if turn.get("role", turn.get("from")) in answers else {}) for turn in turns
    ]


HISTORY = {"history": [[Q1, A1]], "system": SYSTEM}
XTUNER = [{"system": SYSTEM, "input": Q1, "output": A1}, {"input": Q2, "output": A2}]
# Format -> a row; every answer in it is learned.
BOTH_LEARNED: dict[str, object] = {
    "messages": {"messages": messages(MULTI)},
    "bare list": messages(MULTI),
    "messages, system beside": {"messages": messages(MULTI[1:]), "system": SYSTEM},
    "messages as conversations": {"conversations": messages(MULTI)},
    "messages in parts": {
        "messages": [
            turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in messages(MULTI)
        ]
    },
    "messages, flags": {"messages": with_flag(messages(MULTI), "loss", True, "true")},
    "sharegpt": {"conversations": sharegpt(MULTI)},
    "sharegpt, system beside": {"conversations": sharegpt(MULTI[1:]), "system": SYSTEM},
    "alpaca": {"instruction": INSTRUCTION, "input": INPUT, "output": A2} | HISTORY,
    "alpaca, no input": {"instruction": Q2, "input": "", "output": A2} | HISTORY,
    "query": {"query": Q2, "response": A2} | HISTORY,
    "xtuner": {"conversation": XTUNER},
    "prompt, flags": {
        "prompt": with_flag(messages(MULTI[:4]), "loss", True),
        "completion": messages(MULTI[4:]),
    },
}
# What stands before the answer is context, or a flag says so.
LAST_LEARNED: dict[str, object] = {
    "messages, flags": {"messages": with_flag(messages(MULTI), "loss", False, True)},
    "messages, flags as text": {"messages": with_flag(messages(MULTI), "loss", "false", "true")},
    "messages, weights": {"messages": with_flag(messages(MULTI), "weight", 0, 1)},
    "sharegpt, flags": {"conversations": with_flag(sharegpt(MULTI), "loss", False, True)},
    "xtuner, flags": {
        "conversation": [XTUNER[0] | {"output_with_loss": False}, XTUNER[1] | {"output_with_loss": True}]
    },
    "prompt": {"prompt": messages(MULTI[:4]), "completion": messages(MULTI[4:])},
    "prompt, a text": {"prompt": messages(MULTI[:4]), "completion": A2},
    "preference": {
        "prompt": messages(MULTI[:4]),
        "chosen": messages(MULTI[4:]),
        "rejected": messages([("assistant", WORSE)]),
    },
    "preference, no prompt": {
        "chosen": messages(MULTI),
        "rejected": messages([*MULTI[:4], ("assistant", WORSE)]),
    },
    "preference of sharegpt": {
        "conversations": sharegpt(MULTI[:4]),
        "chosen": sharegpt(MULTI[4:])[0],
        "rejected": sharegpt([("assistant", WORSE)])[0],
    },
    "preference of alpaca": {"instruction": INSTRUCTION, "input": INPUT, "chosen": A2, "rejected": WORSE}
    | HISTORY,
}
SINGLE_ROWS: dict[str, object] = {
    "alpaca": {"instruction": INSTRUCTION, "input": INPUT, "output": A2, "system": SYSTEM},
    "prompt": {"prompt": Q2, "completion": A2, "system": SYSTEM},
    "query": {"query": Q2, "response": A2, "system": SYSTEM},
    "xtuner": {"system": SYSTEM, "input": Q2, "output": A2},
    "xtuner, one": {"conversation": {"system": SYSTEM, "input": Q2, "output": A2}},
    "preference": {"prompt": Q2, "chosen": A2, "rejected": WORSE, "system": SYSTEM},
}


@pytest.fixture
def tokenizer(tokenizer_name, tokenizers):
    return tokenizers[tokenizer_name]


@pytest.fixture
def encode(make_recipe, tokenizer_folders, tokenizer_name):
    """Prepare sources together: the (ids, labels) of each of their samples, in order."""

    def run(sources: list[dict], **data: object) -> list[tuple[list[int], list[int]]]:
        settings = {"train": sources, "val_size": 0} | data
        recipe = make_recipe(sources, tokenizer_folders[tokenizer_name], data=settings)
        stage = recipe.stages[0]
        loaded = tokenizer_for(recipe, stage)
        prepared = prepare(stage, loaded, get_template("chatml", loaded))
        return [(list(sample.input_ids), list(sample.labels)) for sample in prepared.samples_in_order]

    return run


def write_each(folder: Path, rows: dict[str, object]) -> list[dict]:
    """Write each row as a file of its own."""
    sources = []
    for name, row in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        sources.append({"path": str(path)})
    return sources


def check_all(found: list, names: object, expected: tuple[list[int], list[int]]) -> None:
    assert -100 in expected[1] and set(expected[1]) != {-100}
    assert len(found) == len(names)
    for name, sample in zip(names, found, strict=True):
        assert sample == expected, name


@pytest.mark.parametrize(
    ("rows", "turns", "learned"),
    [(BOTH_LEARNED, MULTI, None), (LAST_LEARNED, MULTI, {1}), (SINGLE_ROWS, SINGLE, None)],
    ids=["both answers", "the last answer", "one answer"],
)
def test_every_format(encode, tokenizer, tmp_path, rows, turns, learned):
    bos = tokenizer.bos_token or ""
    expected = label(tokenizer, chatml(turns, bos=bos, learned=learned))
    check_all(encode(write_each(tmp_path, rows)), rows, expected)


def test_ids_made_elsewhere(encode, tokenizer, tmp_path):
    ids, labels = label(tokenizer, chatml(MULTI, bos=tokenizer.bos_token or ""))
    rows = {"tokenized": {"input_ids": ids, "labels": labels}}
    check_all(encode(write_each(tmp_path, rows)), rows, (ids, labels))


def test_train_on_the_last_turn_is_as_if_only_it_were_flagged(encode, tokenizer, tmp_path):
    expected = label(tokenizer, chatml(MULTI, bos=tokenizer.bos_token or "", learned={1}))
    sources = write_each(tmp_path, BOTH_LEARNED)
    check_all(encode(sources, train_on="last"), BOTH_LEARNED, expected)


def test_without_the_end_mark(encode, tokenizer, tmp_path):
    ids, labels = label(tokenizer, chatml(MULTI, bos=tokenizer.bos_token or ""))
    mark = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = ids, [-100 if item == mark else item for item in labels]
    check_all(encode(write_each(tmp_path, BOTH_LEARNED), train_on_eot=False), BOTH_LEARNED, expected)


def test_columns_and_maps_rename(encode, tokenizer, tmp_path):
    expected = label(tokenizer, chatml(SINGLE, bos=tokenizer.bos_token or ""))
    renamed = {
        "alpaca": ({"frage": INSTRUCTION, "mehr": INPUT, "antwort": A2}, {}),
        "query": ({"context": INSTRUCTION, "question": INPUT, "answer": A2}, {"map": "sql"}),
        "messages": ({"dialog": [{"who": r, "said": c} for r, c in SINGLE]}, {}),
    }
    columns = {
        "alpaca": {"instruction": "frage", "input": "mehr", "output": "antwort"},
        "messages": {"messages": "dialog", "role": "who", "content": "said"},
    }
    sources = write_each(tmp_path, {name: row for name, (row, _) in renamed.items()})
    for name, source in zip(renamed, sources, strict=True):
        source.update(renamed[name][1] | ({"columns": columns[name]} if name in columns else {}))
        # The map's own system text gives way to the source's; a row's own wins over both.
        source["system"] = SYSTEM if name != "messages" else "not used"
    check_all(encode(sources), renamed, expected)


def write_csv(row: dict) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue().encode()


def write_table(row: dict, write: Callable) -> bytes:
    sink = io.BytesIO()
    write(pyarrow.Table.from_pylist([row]), sink)
    return sink.getvalue()


def write_arrow(row: dict, new: Callable) -> bytes:
    def write(table: pyarrow.Table, sink: io.BytesIO) -> None:
        with new(sink, table.schema) as writer:
            writer.write_table(table)

    return write_table(row, write)


def compress_zstd(raw: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def line_of(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


# Ending -> the bytes of a file that holds one row.
FILES: dict[str, Callable[[dict], bytes]] = {
    "jsonl": lambda row: line_of(row) + b"\n",
    "bom.jsonl": lambda row: b"\xef\xbb\xbf" + line_of(row),
    "crlf.jsonl": lambda row: b"\r\n \r\n" + line_of(row) + b"\r\n\r\n",
    "json": lambda row: b"[\n" + line_of(row) + b"\n]\n",
    "bom.json": lambda row: b"\xef\xbb\xbf[" + json.dumps(row).encode() + b"]",
    "jsonl.gz": lambda row: gzip.compress(line_of(row)),
    "jsonl.zst": lambda row: compress_zstd(line_of(row)),
    "json.gz": lambda row: gzip.compress(b"[" + line_of(row) + b"]"),
    "parquet": lambda row: write_table(row, parquet.write_table),
    "arrow": lambda row: write_arrow(row, pyarrow.ipc.new_file),
    "stream.arrow": lambda row: write_arrow(row, pyarrow.ipc.new_stream),
}


@pytest.mark.parametrize("kinds", ["flat", "nested"])
def test_every_kind_of_file(encode, tokenizer, tmp_path, kinds):
    """Names have blanks and Chinese characters; one source is a folder, one a pattern."""
    row, turns, files = {"messages": messages(MULTI)}, MULTI, dict(FILES)
    if kinds == "flat":
        row, turns = SINGLE_ROWS["alpaca"], SINGLE
        files |= {"csv": write_csv, "csv.gz": lambda row: gzip.compress(write_csv(row))}
    folder = tmp_path / "数据 of mine"
    (folder / "deep").mkdir(parents=True)
    for ending, write in files.items():
        (folder / f"行 1.{ending}").write_bytes(write(row))
        (folder / "deep" / f"行 1.{ending}").write_bytes(write(row))
    sources = [{"path": str(folder / f"行 1.{ending}")} for ending in files]
    expected = label(tokenizer, chatml(turns, bos=tokenizer.bos_token or ""))
    check_all(encode(sources), files, expected)
    check_all(encode([{"path": str(folder)}]), [*files] * 2, expected)
    check_all(
        encode([{"path": str(folder / "**" / "*.jsonl")}]),
        [e for e in files if e.endswith("jsonl")] * 2,
        expected,
    )


def test_documents_in_every_kind_of_file(make_recipe, tokenizer_folders, tokenizers, tmp_path):
    tokenizer = tokenizers["llama2"]
    text = "The river\r\nruns  deep. 黄河 <s> 42"
    row = {"text": text}
    files = FILES | {"csv": write_csv}
    for ending, write in files.items():
        (tmp_path / f"doc.{ending}").write_bytes(write(row))
    sources = [{"path": str(tmp_path / f"doc.{ending}")} for ending in files]
    recipe = make_recipe(
        sources, tokenizer_folders["llama2"], mode="pretrain", data={"train": sources, "val_size": 0}
    )
    stage = recipe.stages[0]
    prepared = prepare(stage, tokenizer_for(recipe, stage), None)
    found = [sample.input_ids for sample in prepared.samples_in_order]
    eos = tokenizer.eos_token_id
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.bos_token_id not in plain and eos not in plain
    assert [list(ids) for ids in found] == [[*plain, eos]] * len(files)
