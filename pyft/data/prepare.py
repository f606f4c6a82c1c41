"""From a stage of a recipe to batches: read, encode, split, pack, count.

    files -> rows -> encoded samples in a store -> (validation split) -> (weights) -> packs -> OrderedBatches

Rows are split before they are repeated or packed. Which rows become validation depends on what they say and
the seed, not on their order, so shuffling a file moves no row from one side to the other. Samples stay on
disk (store.py); what is held in memory is some sixty bytes for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyft.config.modes import MODES
from pyft.config.schema import DataSource, Stage
from pyft.data.batches.order import OrderedBatches
from pyft.data.batches.packing import pack
from pyft.data.batches.split import rank_rows, split_rows
from pyft.data.batches.streaming import StreamedBatches, StreamSettings
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.prepared.counts import Counts, SourceCounts
from pyft.data.prepared.pipeline import Poll
from pyft.data.prepared.selection import Selection
from pyft.data.prepared.source import STREAM_ROWS, SourceReader, describe_tokenizer, encode_options
from pyft.data.prepared.store import SampleStore
from pyft.data.show.ledger import make_ledger
from pyft.data.show.remarks import describe_ledger, describe_no_stop, describe_nothing_left
from pyft.data.show.samples import format_sample
from pyft.data.show.terminal import wants_colour
from pyft.errors import ConfigError, DataError


@dataclass
class PreparedData:
    """What training needs, and what is shown before it.

    `ledger` is nested numbers; `fingerprint` is a SHA-256 over file contents, options, tokenizer and
    template; `preview` one sample, written out; `notes` lines such as which format a file was read as.
    `samples_in_order` has the samples of the training files as they stand in them, those that went to
    validation included; of a stream those of its beginning. `longest` is the tokens of the longest sample.
    """

    train: OrderedBatches | StreamedBatches
    validation: OrderedBatches | None
    ledger: dict[str, Any]
    fingerprint: str
    preview: str
    samples_in_order: Selection
    longest: int
    notes: list[str] = field(default_factory=list)


def prepare(
    stage: Stage, tokenizer: Any, template: ChatTemplate | None, *, poll: Poll = lambda: None
) -> PreparedData:
    """Prepare the data of one stage: batches, ledger, preview.

    `template` is used for conversations only. `poll` is called at least every 0.2 s or so while rows are
    prepared; what it raises ends the work. ConfigError if tokenizer, template or val_size does not fit;
    DataError if a file or row cannot be used, or nothing is left to learn.
    """
    template = template if MODES[stage.mode].has_template else None
    _check_mode(stage, tokenizer, template)
    data, seed = stage.data, stage.train.seed
    reader = SourceReader(stage, tokenizer, template, poll)
    prepared = [reader.prepare(source) for source in data.train]
    stores, counts = [store for store, _ in prepared], Counts()
    for _, of_source in prepared:
        counts.add(of_source)
    if not any(map(len, stores)):
        raise DataError(describe_nothing_left(data.train, counts, data.max_length))
    if template is not None and data.train_on_eot:
        _check_stop([of_source for _, of_source in prepared], counts, template)
    set_aside = [reader.prepare(source) for source in data.validation]
    for _, of_source in set_aside:
        counts.add(of_source)
    in_order = Selection(stores)
    if set_aside:
        train, validation = in_order, Selection([store for store, _ in set_aside])
    else:
        train, validation = _split(in_order, stores, data.val_size, seed)
    if not data.streaming:
        train = _repeat(train, data.train, stores, counts, seed)
    max_length = data.max_length if data.packing else None
    train_packs, validation_packs = _pack(train, max_length, seed), _pack(validation, max_length, seed)
    ledger = make_ledger(
        counts,
        train,
        validation,
        max_length=max_length,
        num_train_packs=None if train_packs is None else len(train_packs),
        num_validation_packs=None if validation_packs is None else len(validation_packs),
    )
    notes = list(reader.notes)
    if data.streaming:
        held_out = frozenset() if set_aside else _digests_of(validation, stores)
        batches = _stream(stage, reader, held_out, poll)
        notes.append(
            f"streaming: the ledger covers the first {STREAM_ROWS} rows of each source; the others are read "
            "while training"
        )
    else:
        batches = _batches(train, train_packs, stage.train.per_device_train_batch_size, seed, shuffle=True)
    return PreparedData(
        train=batches,
        validation=_batches(
            validation, validation_packs, stage.train.per_device_eval_batch_size, seed, shuffle=False
        )
        if len(validation)
        else None,
        ledger=ledger,
        fingerprint=_fingerprint(stage, tokenizer, template, reader),
        preview=format_sample(
            train[0], train.source(0), tokenizer, colour=wants_colour(), cut_text=train.cut_text(0)
        ),
        samples_in_order=in_order,
        longest=_longest(stage, train, validation),
        notes=[*notes, *describe_ledger(ledger, data.val_size)],
    )


def _check_mode(stage: Stage, tokenizer: Any, template: ChatTemplate | None) -> None:
    """Refuse a tokenizer without eos, and a mode that lacks the template it needs."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no eos token, so no text could end (model.tokenizer): set eos_token in it"
        )
    if MODES[stage.mode].has_template and template is None:
        raise ConfigError(f"mode {stage.mode} needs a chat template (model.template): name one")


def _check_stop(sources: Sequence[SourceCounts], counts: Counts, template: ChatTemplate) -> None:
    if not counts.tally["rows_with_end"]:
        formats = {file.format.name for source in sources for file in source.files if file.format}
        is_tokenized = formats == {"tokenized"}
        raise ConfigError(
            describe_no_stop(template, counts.tally["rows_truncated"], is_tokenized=is_tokenized)
        )


def _split(
    in_order: Selection, stores: Sequence[SampleStore], val_size: float, seed: int
) -> tuple[Selection, Selection]:
    digests = np.concatenate([store.row_digests for store in stores])
    chosen = split_rows(digests, val_size, seed)[in_order.rows]
    return in_order.take(~chosen), in_order.take(chosen)


def _repeat(
    train: Selection,
    sources: Sequence[DataSource],
    stores: Sequence[SampleStore],
    counts: Counts,
    seed: int,
) -> Selection:
    """See the rows of each source `weight` times: the whole part for all, the rest for a seeded share."""
    if all(source.weight == 1 for source in sources):
        return train
    learned = np.unique(train.rows)
    times = np.empty(sum(len(store.row_digests) for store in stores), np.int64)
    first = 0
    for source, store in zip(sources, stores, strict=True):
        digests = store.row_digests
        rows = learned[(learned >= first) & (learned < first + len(digests))]
        ranked = rows[np.argsort(rank_rows(digests[rows - first], seed + 1), kind="stable")]
        times[rows] = int(source.weight)
        times[ranked[: round(source.weight % 1 * len(rows))]] += 1
        first += len(digests)
    each = times[train.rows]
    counts.dropped["not_sampled"] += len(np.unique(train.rows[each == 0]))
    counts.tally["tokens_cut"] += int(train.lengths[each == 0].sum())
    counts.tally["tokens_repeated"] += int((train.lengths * np.maximum(each - 1, 0)).sum())
    repeated = train.take(np.repeat(np.arange(len(train)), each))
    if not len(repeated):
        raise ConfigError(
            "no row is left to train on: the weights leave none of any source (data.train[].weight): "
            "raise them, or leave such sources out"
        )
    return repeated


def _longest(stage: Stage, *parts: Selection) -> int:
    """Return the tokens of the longest sample; for a stream, which may bring longer ones, the bound."""
    longest = max(int(part.lengths.max(initial=0)) for part in parts)
    return max(longest, stage.data.max_length or 0) if stage.data.streaming else longest


def _digests_of(validation: Selection, stores: Sequence[SampleStore]) -> frozenset[bytes]:
    digests = np.concatenate([store.row_digests for store in stores])
    return frozenset(digest.tobytes() for digest in digests[np.unique(validation.rows)])


def _stream(stage: Stage, reader: SourceReader, held_out: frozenset[bytes], poll: Poll) -> StreamedBatches:
    data, train = stage.data, stage.train
    settings = StreamSettings(
        num_batches=(train.max_steps or 1) * train.gradient_accumulation_steps,
        batch_size=train.per_device_train_batch_size,
        max_length=data.max_length if data.packing else None,
        seed=train.seed,
        num_workers=data.num_workers or 0,
    )
    return StreamedBatches(data.train, reader.encoder, settings, held_out, poll)


def _pack(samples: Selection, max_length: int | None, seed: int) -> list[list[int]] | None:
    return None if max_length is None else pack(samples.lengths.tolist(), max_length, seed)


def _batches(
    samples: Selection, packs: list[list[int]] | None, batch_size: int, seed: int, *, shuffle: bool
) -> OrderedBatches:
    lengths = samples.lengths.tolist() if packs is None else None
    return OrderedBatches(samples, batch_size, seed, shuffle, packs=packs, lengths=lengths)


def _fingerprint(stage: Stage, tokenizer: Any, template: ChatTemplate | None, reader: SourceReader) -> str:
    data = stage.data
    options = encode_options(stage)
    settings = {"format", "map", "columns", "system", "max_samples", "weight"}
    description = {
        "mode": stage.mode,
        "train": [[reader.content_ids(s), s.model_dump(include=settings)] for s in data.train],
        "validation": [[reader.content_ids(s), s.model_dump(include=settings)] for s in data.validation],
        "options": [data.val_size, data.max_length, data.packing, data.system, stage.train.seed],
        "encoding": [options.overlong, options.train_on, options.train_on_eot, data.on_bad_record],
        **describe_tokenizer(tokenizer),
        "template": template.source if template is not None else None,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
