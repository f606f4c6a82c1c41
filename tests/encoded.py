"""What encoding gives, as plain lists that compare with ==."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyft.config.modes import SFT
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import IGNORED, EncodedRow, EncodeOptions, Sample
from pyft.data.prepared.selection import Selection
from pyft.data.rows.row import Message, Row
from pyft.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """A sample's ids and labels, and the text they spell."""

    input_ids: list[int]
    labels: list[int]
    text: str = ""

    @property
    def num_trained(self) -> int:
        """Labels that are learned."""
        return sum(label != IGNORED for label in self.labels)


def as_lists(sample: Sample, text: str = "") -> Encoded:
    """Check that a sample is a pair of int32 arrays, and take its numbers out."""
    assert {sample.input_ids.dtype.name, sample.labels.dtype.name} == {"int32"}
    assert sample.input_ids.shape == sample.labels.shape == (len(sample),)
    encoded = Encoded(sample.input_ids.tolist(), sample.labels.tolist(), text)
    assert encoded.num_trained == sample.num_trained
    return encoded


def encode(encoder: RowEncoder, rows: Sequence[Row], system: str | None = None) -> list[EncodedRow]:
    """Encode rows; each sample is an Encoded."""
    return [
        replace(row, samples=tuple(map(as_lists, row.samples, row.texts)), texts=())
        for row in encoder.encode(rows, system)
    ]


def encode_conversation(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message]
) -> Encoded | None:
    """Encode one conversation, of any length, learning every trained turn; None where there is none."""
    encoder = RowEncoder(tokenizer, template, EncodeOptions(SFT))
    (row,) = encode(encoder, [Row(tuple(messages), None)])
    if row.error is not None:
        raise DataError(row.error)
    return row.samples[0] if row.samples else None


def sources_of(samples: Selection) -> list[str]:
    """The row of each sample, as `file:line`."""
    return [samples.source(index) for index in range(len(samples))]
