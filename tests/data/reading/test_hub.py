"""Data sets of the hub, played by stand-ins: no test needs the network."""

from __future__ import annotations

import datasets
import pytest

from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.identity import content_id
from pyft.data.reading.source_file import DataFile
from pyft.errors import DataError

FILE = DataFile("hf://owner/name", "hub", name="en", split="test")


def rows():
    for number in range(1500):
        yield {"text": f"row {number}", "meta": {"a": None, "b": number}}


@pytest.fixture
def calls(monkeypatch):
    """Answer load_dataset with a stream of rows, and keep what it was asked."""
    made = []

    def load_dataset(*args, **kwargs):
        made.append((args, kwargs))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


def test_rows_are_streamed(calls):
    chunks = list(read_chunks(FILE))
    assert calls == [(("owner/name", "en"), {"split": "test", "streaming": True})]
    assert [len(chunk) for chunk in chunks] == [1000, 500]
    records = [record for chunk in chunks for record in chunk.decode()]
    assert records[1234].value == {"text": "row 1234", "meta": {"b": 1234}}
    assert records[1234].number == 1235


def test_no_more_is_read_than_asked_for(calls, monkeypatch):
    chunk = next(iter(read_chunks(FILE)))
    assert len(chunk) == 1000


@pytest.mark.parametrize("name", [None, "en"])
def test_without_the_network(name):
    file = DataFile("hf://owner/name", "hub", name=name)
    for read in (lambda: list(read_chunks(file)), lambda: content_id(file)):
        with pytest.raises(DataError) as caught:
            read()
        (message,) = caught.value.messages
        assert message.startswith("hf://owner/name")
        assert "the data set cannot be read (" in message
        assert "check its name and split and the network, or download its files" in message


def test_a_failure_in_the_middle(monkeypatch):
    def broken():
        yield {"text": "a"}
        raise ConnectionError("the line is dead.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: broken())
    with pytest.raises(DataError, match=r"\(name en, split test\): .* \(the line is dead\):"):
        list(read_chunks(FILE))


def test_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is a folder owner/name here"):
        list(read_chunks(FILE))


def test_the_revision_names_the_content(monkeypatch):
    class Builder:
        hash = "abc"

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args: Builder())
    ids = {content_id(DataFile("hf://a/b", "hub", name=name, split=s)) for name in (None, "x") for s in "uv"}
    assert len(ids) == 4
    before = content_id(FILE)
    Builder.hash = "abd"
    assert content_id(FILE) != before
