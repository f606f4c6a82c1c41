"""Which files a source means, what is skipped, and every source that has none."""

from __future__ import annotations

import gzip
import os

import pytest

from pyft.config.schema import DataSource
from pyft.data.reading.files import expand_source
from pyft.data.reading.identity import content_id, hash_file
from pyft.data.reading.source_file import DataFile
from pyft.errors import DataError


def expand(path, **settings):
    files, notes = expand_source(DataSource(path=str(path), **settings))
    return [file.path for file in files], notes


def fail(path) -> str:
    with pytest.raises(DataError) as caught:
        expand(path)
    assert caught.value.exit_code == 3
    (message,) = caught.value.messages
    assert message.startswith(f"{path}: "), message
    assert message.count(": ") >= 2, "what, then how to fix it"
    return message.removeprefix(f"{path}: ")


def plant(folder, *names: str, content: bytes = b'{"text": "a"}\n') -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.jsonl", "jsonl", None),
        ("a.ndjson", "jsonl", None),
        ("A.JSON", "json", None),
        ("数据 1.v2.txt", "txt", None),
        ("a.csv.gz", "csv", "gzip"),
        ("a.jsonl.ZST", "jsonl", "zstd"),
        ("a.parquet", "parquet", None),
        ("a.arrow", "arrow", None),
    ],
)
def test_kinds(tmp_path, name, kind, compression):
    plant(tmp_path, name)
    files, notes = expand_source(DataSource(path=str(tmp_path / name)))
    assert files == [DataFile(str(tmp_path / name), kind, compression, 14)]
    assert notes == []


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    names = ["a/2.jsonl", "a/10.jsonl", "a.jsonl", "b/c/d.csv", "z.json", "数 据/一.txt"]
    plant(tmp_path, *names)
    paths, notes = expand(tmp_path)
    assert paths == sorted((str(tmp_path / name) for name in names), key=lambda path: path.split("/"))
    assert notes == []


def test_what_is_passed_over_is_told(tmp_path):
    plant(tmp_path, "a.jsonl", "README.md", ".hidden.jsonl", ".git/b.jsonl", "state.json", "c.parquet.gz")
    paths, notes = expand(tmp_path)
    assert paths == [str(tmp_path / "a.jsonl")]
    (note,) = notes
    assert note.startswith(f"{tmp_path}: 1 files read; 5 other files skipped (")


def test_a_folder_linked_to_itself_is_read_once(tmp_path):
    plant(tmp_path / "data", "a.jsonl")
    plant(tmp_path / "other", "b.jsonl")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "other")
    paths, _ = expand(tmp_path / "data")
    assert [os.path.basename(path) for path in paths] == ["a.jsonl", "b.jsonl"]


def test_patterns(tmp_path):
    plant(tmp_path, "a.jsonl", "b.jsonl", "c.json", "x/d.jsonl", "x/y/e.jsonl", ".f.jsonl", "b.md")
    (tmp_path / "folder.jsonl").mkdir()

    def found(pattern: str) -> list[str]:
        return [path.removeprefix(f"{tmp_path}/") for path in expand(tmp_path / pattern)[0]]

    assert found("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found("[bc].js*") == ["b.jsonl", "c.json"]
    assert found("**/*.jsonl") == ["a.jsonl", "b.jsonl", "x/d.jsonl", "x/y/e.jsonl"]
    assert found("b.*") == ["b.jsonl"]
    assert "1 other file skipped (b.md)" in expand(tmp_path / "b.*")[1][0]


def test_a_name_with_wildcards_in_it_is_a_name(tmp_path):
    plant(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert expand(tmp_path / "a[1].jsonl")[0] == [str(tmp_path / "a[1].jsonl")]
    plant(tmp_path, "data [v1]/x*/b.jsonl", "data [v1]/c.jsonl")
    assert expand(tmp_path / "data [v1]" / "*.jsonl")[0] == [str(tmp_path / "data [v1]" / "c.jsonl")]
    assert len(expand(tmp_path / "data [v1]" / "**" / "*.jsonl")[0]) == 2
    assert len(expand(tmp_path / "data [v1]")[0]) == 2


def test_sources_without_files(tmp_path):
    assert "no such file" in fail(tmp_path / "nowhere.jsonl")
    assert "no file matches the pattern" in fail(tmp_path / "*.jsonl")
    (tmp_path / "empty").mkdir()
    assert "the folder holds 0 files, none of a kind that can be read (.jsonl" in fail(tmp_path / "empty")
    plant(tmp_path, "a.md", "b.parquet.gz", "c")
    assert "the pattern matches 1 files, none of a kind" in fail(tmp_path / "*.md")
    assert "files ending in '.md' are not read" in fail(tmp_path / "a.md")
    assert "files ending in '.gz' are not read" in fail(tmp_path / "b.parquet.gz")
    assert "files ending in 'nothing' are not read" in fail(tmp_path / "c")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "no such file" in fail(tmp_path / "broken.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is not a regular file" in fail(tmp_path / "pipe.jsonl")


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert "cannot be read (Permission denied)" in fail(tmp_path)


def test_hub_names_are_taken_as_they_are():
    source = DataSource.model_construct(path="hf://owner/name", name="en", split="test")
    assert expand_source(source) == ([DataFile("hf://owner/name", "hub", None, 0, "en", "test")], [])


def test_hash_is_of_the_content(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(b"x")
    two.write_bytes(b"x")
    os.utime(two, (1, 1))
    assert hash_file(str(one)) == hash_file(str(two)) == content_id(DataFile(str(two), "txt"))
    two.write_bytes(b"y")
    assert hash_file(str(one)) != hash_file(str(two))
    with pytest.raises(DataError, match="no such file"):
        hash_file(str(tmp_path / "nowhere.jsonl"))


def test_a_packed_file_is_hashed_as_it_lies(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x"))
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(path.read_bytes())
    assert hash_file(str(path)) == hash_file(str(plain))
