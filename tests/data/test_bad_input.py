"""Bad rows and files through `python -m pyft.data`: one line of what, where and how to fix it; no halves.

The good rows of the same files show that what is refused is the bad one alone.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from data_command import GOOD, Command, between, line
from pyarrow import parquet

from pyft.command import run_command
from pyft.data.__main__ import main, make_parser


def talk(*turns: object) -> bytes:
    return line({"messages": list(turns)})


USER, ANSWER = GOOD[0]["messages"]

# Name -> the second of four lines, what the error line says of it.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"messages": [}', ":2:15: broken JSON"),
    "two values": (b"{} {}", ":2:4: broken JSON"),
    "no JSON": (b"hello", ":2:1: broken JSON"),
    "Latin-1": (line(GOOD[0]).replace(b"river", "río".encode("latin-1")), ":2:91: byte 0xed is not UTF-8"),
    "NUL": (talk(USER, ANSWER | {"content": "a\0b"}), ":2: messages[1].content holds a NUL character"),
    "raw NUL": (line(GOOD[0]).replace(b"river", b"ri\0er"), ":2:"),
    "lone surrogate": (
        b'{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}',
        ":2: messages[0].content holds the lone surrogate \\ud83d",
    ),
    "twice a key": (b'{"messages": [], "messages": []}', ':2: the key "messages" appears twice'),
    "no content": (talk(USER, {"role": "assistant"}), ":2: messages[1].content is missing"),
    "null content": (talk(USER, ANSWER | {"content": None}), ":2: messages[1].content is null"),
    "a number": (talk(USER, ANSWER | {"content": 4}), ":2: messages[1].content is a number"),
    "unknown role": (talk(USER | {"role": "bot"}, ANSWER), ":2: messages[0].role is 'bot'"),
    "no role": (talk({"content": "a"}, ANSWER), ":2: messages[0].role is missing"),
    "empty answer": (talk(USER, ANSWER | {"content": ""}), ":2: messages[1].content is empty"),
    "blank answer": (talk(USER, ANSWER | {"content": " \n"}), ":2: messages[1].content is empty"),
    "no turns": (line({"messages": []}), ":2: messages is an empty list"),
    "a user learned": (talk(USER | {"loss": True}, ANSWER), ":2: messages[0].loss is true for the user"),
    "a flag of nothing": (talk(USER, ANSWER | {"loss": "perhaps"}), ":2: messages[1].loss is 'perhaps'"),
    "an array": (b"[1, 2]", ":2:"),
    "a number alone": (b"7", ":2: the row is a number"),
    "empty object": (b"{}", ":2: the row is an empty object"),
    "another format": (line({"instruction": "a", "output": "b"}), ":2: this row is alpaca"),
    "no format": (line({"qestion": "a", "answer": "b"}), ":2: no known format fits the keys qestion, answer"),
    "tools": (talk(USER, ANSWER, {"role": "tool", "content": "1"}, ANSWER), ":2: "),
}
# Those that a file whose format is given meets too: the row is not of it.
NOT_OF_THE_FORMAT = ("an array", "a number alone", "empty object", "another format", "no format")


@pytest.fixture
def command(tmp_path, bpe_folder):
    folder = tmp_path / "我的 data"
    folder.mkdir()
    return Command(folder, bpe_folder)


@pytest.fixture
def fail(command, capsys):
    return partial(command.check_failure, capsys)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(command, fail, name):
    bad, message = BAD_LINES[name]
    path = command.write("data.jsonl", between(bad))
    assert f"{path}{message}" in fail(3)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_skipped_when_asked_for_and_counted(command, capsys, name):
    command.write("data.jsonl", between(BAD_LINES[name][0]))
    assert command.run("data.on_bad_record=skip") == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.split("\n")[:-1]]
    ledger = rows.pop()["ledger"]
    assert [Path(row["source"]).name for row in rows] == ["data.jsonl:1", "data.jsonl:3", "data.jsonl:4"]
    assert ledger["rows_read"] == 4
    assert ledger["dropped"]["bad_record"] == 1 == sum(ledger["dropped"].values())


def test_skipped_records_are_shown(command, capsys):
    path = command.write("data.jsonl", line(GOOD[0]) + b"\n" + b"\n".join([b"oops"] * 7) + b"\n")
    arguments = command.arguments("data.on_bad_record=skip")
    arguments.remove("--json")
    assert run_command(main, make_parser(), arguments) == 0
    out = capsys.readouterr().out
    assert all(f"{path}:{number}:1: broken JSON" in out for number in range(2, 7))
    assert f"{path}:8:1" not in out
    assert "bad_record" in out


@pytest.mark.parametrize("number", [99, 100, 101, 350])
def test_a_row_of_another_format_at_any_place(command, fail, number):
    lines = [line(GOOD[i % 3]) for i in range(400)]
    lines[number - 1] = line({"text": "a document"})
    path = command.write("data.jsonl", b"\n".join(lines))
    assert f"{path}:{number}: this row is text, the rows before it are messages" in fail(3)


def test_a_cut_last_line(command, fail):
    whole = line(GOOD[0]) + b"\n" + line(GOOD[1])
    path = command.write("data.jsonl", whole[:-9])
    assert f"{path}:2:" in fail(3) and "the last line is cut" in fail(3)


PARQUET = pyarrow.BufferOutputStream()
parquet.write_table(pyarrow.Table.from_pylist(GOOD), PARQUET)
PARQUET_BYTES = PARQUET.getvalue().to_pybytes()

# File name -> its bytes, what the error line says.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", "empty.jsonl: the file is empty"),
    "blank.jsonl": (b" \n\r\n", "blank.jsonl: the file is empty"),
    "bom alone.jsonl": (b"\xef\xbb\xbf", "bom alone.jsonl: the file is empty"),
    "empty.json": (b"", "empty.json: the file is empty"),
    "no rows.json": (b"[]", "no rows.json: the file is empty"),
    "empty.txt": (b"\n", "empty.txt: the file is empty"),
    "empty.csv": (b"", "empty.csv: the file is empty"),
    "header.csv": (b"instruction,output\n", "header.csv: the file is empty"),
    "empty.parquet": (b"", "empty.parquet: the file is empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "empty.jsonl.gz: the file is empty"),
    "UTF-16.jsonl": (line(GOOD[0]).decode().encode("utf-16"), "UTF-16.jsonl:1:1: the file is UTF-16"),
    "wrapped.json": (line({"data": GOOD}), "wrapped.json:1:1: the rows are wrapped in an object"),
    "one.json": (line(GOOD[0]), "one.json:1:1: "),
    "lines.json": (line(GOOD[0]) + b"\n" + line(GOOD[1]), "lines.json:1:1: the file holds one record after"),
    "indented.jsonl": (
        json.dumps(GOOD[0], indent=1).encode(),
        "indented.jsonl:1:2: the record spans several lines",
    ),
    "cut.json": (b"[" + line(GOOD[0]) + b"," + line(GOOD[1])[:-9], "cut.json:1:"),
    "comma.json": (b"[" + line(GOOD[0]) + b",]", "a comma before the closing ]"),
    "cut.jsonl.gz": (gzip.compress(between(line(GOOD[0])))[:-12], "cut.jsonl.gz: the compressed file is cut"),
    "no archive.jsonl.gz": (between(line(GOOD[0])), "no archive.jsonl.gz: the compressed file is cut"),
    "no archive.jsonl.zst": (between(line(GOOD[0])), "no archive.jsonl.zst: the compressed file is cut"),
    "cut.parquet": (PARQUET_BYTES[:-9], "cut.parquet: is not a complete parquet file"),
    "torn.parquet": (
        PARQUET_BYTES[: len(PARQUET_BYTES) // 2],
        "torn.parquet: is not a complete parquet file",
    ),
    "text.parquet": (b"hello " * 20, "text.parquet: is not a complete parquet file"),
    "text.arrow": (b"hello " * 20, "text.arrow: is not a complete arrow file"),
    "short row.csv": (b"instruction,output\na,b\nc\n", "short row.csv:2: the row has 1 cells, the header 2"),
    "long row.csv": (b"instruction,output\na,b, c\n", "long row.csv:1: the row has 3 cells"),
    "open quote.csv": (b'instruction,output\na,"b\nc,d\n', "open quote.csv:"),
    "empty cell.csv": (b"instruction,output\na,b\nc,\n", "empty cell.csv:2: output is empty"),
    "Latin-1.csv": (b"instruction,output\na,b\nc,\xe9\n", "Latin-1.csv:2: byte 0xe9 in column output"),
    "twice.csv": (b"output,output\na,b\n", "two columns have the name 'output'"),
    "rows.xlsx": (b"PK", "rows.xlsx: files ending in '.xlsx' are not read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(command, fail, name):
    content, message = BAD_FILES[name]
    command.write(name, content)
    assert message in fail(3)


def test_csv_cells_that_may_be_empty(command, capsys):
    command.write("rows.csv", "instruction,input,output\na,,b\nc,d,e\n".encode("utf-8-sig"))
    assert command.run() == 0
    texts = [json.loads(text).get("text") for text in capsys.readouterr().out.splitlines()]
    assert "<|User|>:a\n<|Bot|>:b" in texts[0] and "<|User|>:c\nd\n<|Bot|>:e" in texts[1]


def test_places_where_nothing_is(command, fail):
    (command.folder / "folder").mkdir()
    (command.folder / "folder" / "notes.md").write_text("a")
    for path, message in (
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("*.jsonl", "no file matches the pattern"),
        ("folder", "none of a kind that can be read"),
        ("folder/*.md", "none of a kind that can be read"),
    ):
        command.recipe["data"]["train"] = [{"path": str(command.folder / path)}]
        assert message in fail(3)


def test_a_file_that_may_not_be_read(command, fail, monkeypatch):
    path = command.write("data.jsonl", between(line(GOOD[0])))
    system_open = open

    def refuse(file, *arguments, **options):
        # The superuser may read everything, whatever the file's mode.
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return system_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    assert f"{path}: cannot be read (Permission denied)" in fail(3)


def test_ids_that_never_end(command, fail):
    command.write("data.jsonl", line({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}) + b"\n")
    text = fail(2, prepared=True)
    assert "no row learns <|endoftext|>, which ends an answer in template default" in text
    assert "input_ids and labels" in text and "generation" not in text


def test_rows_that_were_all_skipped_say_why(command, fail):
    path = command.write("data.jsonl", line(GOOD[0]) + b"\n")
    text = fail(3, "data.max_length=4", "data.overlong=error", "data.on_bad_record=skip", prepared=True)
    assert f"(dropped: bad_record 1): fix them, first {path}:1: the row has" in text
    assert "data.max_length 4: raise it" in text


def test_all_rows_too_long(command, fail):
    command.write("data.jsonl", between(line(GOOD[0])))
    for _ in range(2):
        text = fail(3, "data.max_length=4", prepared=True)
        assert "none of the 4 rows is left to train on" in text and "data.max_length" in text
    text = fail(3, "data.max_length=4", "data.overlong=truncate", prepared=True)
    assert "no_trained_tokens 4" in text and "raise data.max_length (now 4; the longest row has" in text
    shutil.rmtree(command.cache)
    assert "data.jsonl:1: the row has" in fail(3, "data.max_length=4", "data.overlong=error")


def test_rows_of_the_other_mode(command, fail):
    path = command.write("data.jsonl", between(line(GOOD[0])))
    assert f"{path}:1: mode pretrain reads plain texts" in fail(3, "mode=pretrain", "model.template=null")
    path = command.write("data.jsonl", b'{"text": "a"}\n')
    assert f"{path}:1: mode sft reads conversations" in fail(3)


def test_columns_and_maps_that_are_not_there(command, fail):
    command.write("data.jsonl", line({"q": "a", "a": "b"}) + b"\n")
    source = command.recipe["data"]["train"][0]
    source["columns"] = {"query": "q", "response": "answer"}
    assert "no row has the key 'answer' that columns names for response (keys found: q, a" in fail(3)
    source["columns"] = {"qery": "q"}
    assert "did you mean query?" in fail(2)
    source.update(columns={}, map="alpca")
    assert "did you mean alpaca?" in fail(2)


def test_ids_that_are_none_of_the_tokenizers(command, fail):
    for row, message in (
        ({"input_ids": [1, 2], "labels": [1]}, ":1: input_ids has 2 tokens, labels 1"),
        ({"input_ids": [1, 10**6], "labels": [1, 10**6]}, ":1: input_ids[1] is 1000000"),
        ({"input_ids": [1, -2], "labels": [1, -2]}, ":1: input_ids[1] is -2"),
        ({"input_ids": [1, 2], "labels": [1, 3]}, ":1: labels[1] is 3"),
        ({"input_ids": [1, 2.5], "labels": [1, 2]}, ":1: input_ids[1] is a number"),
        ({"input_ids": [], "labels": []}, ":1: input_ids is an empty list"),
    ):
        path = command.write("data.jsonl", line(row) + b"\n")
        assert f"{path}{message}" in fail(3)
