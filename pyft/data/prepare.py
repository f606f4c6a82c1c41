"""From a stage of a recipe to batches: read, encode, split, pack, count.

    files -> rows -> encoded rows -> (validation split) -> samples -> packs -> BatchSource

Rows are split before they are packed. Which rows become validation depends on their texts and the seed, not
on their order, so shuffling a file moves no row from one side to the other. Everything is held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyft.config import ConfigError, DataError, DataSource, Stage
from pyft.data.collate import BatchSource
from pyft.data.documents import encode_documents
from pyft.data.encode import (
    EncodedRow,
    Sample,
    encode_conversations,
)
from pyft.data.formats import RowFile, read_rows
from pyft.data.ledger import Counts, format_ledger, make_ledger
from pyft.data.packing import pack
from pyft.data.preview import format_sample, wants_colour
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.data.rows import hash_file
from pyft.data.split import split_rows
from pyft.data.templates import ChatTemplate

__all__ = ["PreparedData", "format_ledger", "prepare", "tokenizer_for"]


@dataclass
class PreparedData:
    """What training needs, and what is shown before it.

    `ledger` is nested numbers; `fingerprint` is a SHA-256 over file contents, options, tokenizer and
    template; `preview` one sample, written out; `notes` lines such as which format a file was read as.
    `samples_in_order` has the samples of the training files as they stand in them, those that went to
    validation included.
    """

    train: BatchSource
    validation: BatchSource | None
    ledger: dict[str, Any]
    fingerprint: str
    preview: str
    train_samples: list[Sample]
    validation_samples: list[Sample]
    samples_in_order: list[Sample]
    notes: list[str] = field(default_factory=list)


def prepare(stage: Stage, tokenizer: Any, template: ChatTemplate | None) -> PreparedData:
    """Prepare the data of one stage.

    ConfigError is raised further down where the tokenizer or template does not fit the mode, or val_size does
    not fit the data.

    Args:
        stage: The stage.
        tokenizer: A fast tokenizer.
        template: The chat template; needed for mode sft only.

    Returns:
        Batches, ledger, preview.

    Raises:
        DataError: A file or row cannot be used, or nothing is left to learn.
    """
    _check_mode(stage, tokenizer, template)
    data, seed = stage.data, stage.train.seed
    counts, notes = Counts(), []
    rows = _encode_sources(data.train, stage, tokenizer, template, counts, notes)
    if not rows:
        raise DataError(_describe_nothing_left(data.train, counts, data.max_length))
    if data.validation:
        train = rows
        validation = _encode_sources(data.validation, stage, tokenizer, template, counts, notes)
    else:
        train, validation = split_rows(rows, data.val_size, seed)
    if template is not None and stage.mode == "sft":
        _check_stop(train, template, tokenizer)
    max_length = data.max_length if data.packing else None
    train_samples, train_groups = _group(train, max_length, seed)
    validation_samples, validation_groups = _group(validation, max_length, seed)
    ledger = make_ledger(
        counts,
        train,
        validation,
        max_length=max_length,
        train_packs=train_groups if data.packing else None,
        validation_packs=validation_groups if data.packing else None,
    )
    _add_notes(ledger, notes, data.val_size)
    batch_size, eval_batch_size = (
        stage.train.per_device_train_batch_size,
        stage.train.per_device_eval_batch_size,
    )
    return PreparedData(
        train=BatchSource(train_groups, batch_size, seed, shuffle=True),
        validation=BatchSource(validation_groups, eval_batch_size, seed, shuffle=False)
        if validation
        else None,
        ledger=ledger,
        fingerprint=fingerprint(stage, tokenizer, template),
        preview=format_sample(train_samples[0], tokenizer, colour=wants_colour()),
        train_samples=train_samples,
        validation_samples=validation_samples,
        samples_in_order=[sample for row in rows for sample in row.samples],
        notes=notes,
    )


def _check_mode(stage: Stage, tokenizer: Any, template: ChatTemplate | None) -> None:
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no eos token, so no text could end (model.tokenizer): set eos_token in it"
        )
    if stage.mode == "sft" and template is None:
        raise ConfigError("mode sft needs a chat template (model.template): name one")


def _encode_sources(
    sources: Sequence[DataSource],
    stage: Stage,
    tokenizer: Any,
    template: ChatTemplate | None,
    counts: Counts,
    notes: list[str],
) -> list[EncodedRow]:
    """Read and encode files; rows that are dropped are counted, the others returned in order."""
    kept = []
    for source in sources:
        file = read_rows(source.path, source.format)
        notes.append(file.describe())
        counts.rows_read += file.records_read
        for reason, count in file.left_out.items():
            counts.dropped[reason] += count
        for row in _encode(file, stage, tokenizer, template):
            if _keep(row, stage, counts):
                kept.append(row)
    return kept


def _encode(
    file: RowFile, stage: Stage, tokenizer: Any, template: ChatTemplate | None
) -> Iterator[EncodedRow]:
    if stage.mode == "pretrain" or template is None:
        return encode_documents(tokenizer, file.rows, stage.data.max_length)
    return encode_conversations(tokenizer, template, file.rows, stage.data.system)


def _keep(row: EncodedRow, stage: Stage, counts: Counts) -> bool:
    if not row.samples:
        counts.dropped["no_trained_tokens"] += 1
        return False
    counts.tokens_encoded += row.num_tokens
    longest = max(len(sample.input_ids) for sample in row.samples)
    if stage.data.max_length is not None and longest > stage.data.max_length:
        counts.dropped["overlong"] += 1
        counts.tokens_cut += row.num_tokens
        counts.longest_dropped = max(counts.longest_dropped, longest)
        return False
    counts.turns_cut += row.turns_cut
    counts.rows_split += len(row.samples) > 1
    counts.prompt_differs += row.prompt_differs
    return True


def _describe_nothing_left(sources: Sequence[DataSource], counts: Counts, max_length: int | None) -> str:
    names = ", ".join(source.path for source in sources)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.dropped.items() if count)
    mend = "give at least one row with an answer that is trained"
    if counts.dropped["overlong"]:
        mend = (
            f"raise data.max_length (now {max_length}; the longest row has {counts.longest_dropped} tokens)"
        )
    return f"{names}: none of the {counts.rows_read} rows is left to train on (dropped: {reasons}): {mend}"


def _check_stop(rows: Sequence[EncodedRow], template: ChatTemplate, tokenizer: Any) -> None:
    stops = set(template.stop_token_ids(tokenizer))
    if not any(stops & set(sample.labels) for row in rows for sample in row.samples):
        raise ConfigError(
            f"template {template.name} leaves {template.end_mark} out of what is learned, so the model "
            "would never "
            "stop (model.template): put it inside {% generation %}, or name a built-in template"
        )


def _group(
    rows: Sequence[EncodedRow], max_length: int | None, seed: int
) -> tuple[list[Sample], list[list[Sample]]]:
    samples = [sample for row in rows for sample in row.samples]
    if max_length is None:
        return samples, [[sample] for sample in samples]
    packs = pack([len(sample.input_ids) for sample in samples], max_length, seed)
    return samples, [[samples[index] for index in members] for members in packs]


def _add_notes(ledger: dict[str, Any], notes: list[str], val_size: float) -> None:
    if val_size and not ledger["validation"]["rows"]:
        notes.append("no validation: there is a single row")
    if ledger["duplicates"]:
        notes.append(
            f"{ledger['duplicates']} validation samples are also training samples: their loss says "
            "nothing about new text"
        )
    if ledger["prompt_differs"]:
        notes.append(
            f"{ledger['prompt_differs']} rows begin with other tokens than chat would send: the "
            "tokenizer joins the "
            "prompt's last character to the answer's first"
        )


def fingerprint(stage: Stage, tokenizer: Any, template: ChatTemplate | None) -> str:
    """Name the prepared data by content: file bytes, options, tokenizer, template; neither paths nor times.

    Args:
        stage: The stage.
        tokenizer: Its tokenizer.
        template: Its template.

    Returns:
        64 hexadecimal digits.
    """
    data = stage.data
    description = {
        "mode": stage.mode,
        "train": [[hash_file(source.path), source.format] for source in data.train],
        "validation": [[hash_file(source.path), source.format] for source in data.validation],
        "options": [data.val_size, data.max_length, data.packing, data.system, stage.train.seed],
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "template": template.source if template is not None and stage.mode == "sft" else None,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
