"""One chunk of records: every mistake is told with its place, and each sample knows its line."""

from __future__ import annotations

import pytest
from encoded import as_lists, sources_of

from pyft.config.modes import SFT
from pyft.config.schema import DataSource
from pyft.data.chat.bind import get_template
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.prepared.chunk import ChunkEncoder
from pyft.data.prepared.selection import Selection
from pyft.data.prepared.store import SampleStore, StoreWriter
from pyft.data.reading import chunks
from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.rows import formats
from pyft.data.rows.formats import read_head, resolve_format
from pyft.data.tokenizers.load import load_tokenizer

GOOD = '{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the river"}]}'
LONG = GOOD.replace("river", "river " * 200)
BAD = {
    2: "oops",
    4: '{"messages": [{"role": "user"}]}',
    5: '{"messages": [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "a"}]}',
    6: LONG,
}
"""Line -> a record that cannot be decoded, converted, rendered, or fitted into max_length."""
LINES = [BAD.get(number, "" if number == 3 else GOOD) for number in range(1, 9)]


@pytest.fixture
def encode(tmp_path, bpe_folder):
    """Encode LINES as the pipeline does, in chunks of so many bytes, the first records decoded beforehand."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    tokenizer = load_tokenizer(str(bpe_folder))
    options = EncodeOptions(SFT, max_length=64, overlong="error")

    def encode(skips: bool, chunk_bytes: int = 1 << 20):
        encoder = ChunkEncoder(
            RowEncoder(tokenizer, get_template("default", tokenizer), options), frozenset(), skips
        )
        source = DataSource(path=str(path))
        (file,) = expand_source(source)[0]
        head, found = read_head(read_chunks(file, chunk_bytes=chunk_bytes))
        format = resolve_format(source, head, file.path, on_bad_record="skip")
        return str(path), [encoder.encode(chunk, format) for chunk in found]

    return encode


@pytest.mark.parametrize("num_decoded", [1, 2, 5, 100])
@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_every_mistake_has_its_place(encode, monkeypatch, num_decoded, chunk_bytes):
    monkeypatch.setattr(formats, "DETECTION_ROWS", num_decoded)
    path, encoded = encode(True, chunk_bytes)
    errors = [error for chunk in encoded for error in chunk.counts.errors]
    assert [error.partition(": ")[0] for error in errors] == [
        f"{path}:{place}" for place in ("2:1", "4", "5", "6")
    ]
    assert [number for chunk in encoded for number in chunk.numbers] == [1, 7, 8]
    assert sum(chunk.counts.rows_read for chunk in encoded) == 7
    assert sum(chunk.counts.dropped["bad_record"] for chunk in encoded) == 4


def test_the_first_mistake_is_the_only_one_told(encode):
    path, (chunk,) = encode(False)
    assert chunk.error.startswith(f"{path}:2:1: broken JSON")
    assert not len(chunk.ids) and not chunk.counts.errors


def test_samples_know_their_line(encode, tmp_path):
    path, encoded = encode(True)
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store")
    for chunk in encoded:
        writer.add(chunk, 0)
    writer.close()
    samples = Selection([SampleStore(tmp_path / "store", [path])])
    assert sources_of(samples) == [f"{path}:{number}" for number in (1, 7, 8)]
    assert len({tuple(as_lists(sample).input_ids) for sample in samples}) == 1


def test_no_record_is_decoded_twice(encode, monkeypatch):
    decoded = []
    decode_line = chunks.decode_line

    def record(raw, path, number, **more):
        decoded.append(number)
        return decode_line(raw, path, number, **more)

    monkeypatch.setattr(chunks, "decode_line", record)
    monkeypatch.setattr(formats, "DETECTION_ROWS", 3)
    encode(True)
    assert decoded == [1, 2, 4, 5, 6, 7, 8]
