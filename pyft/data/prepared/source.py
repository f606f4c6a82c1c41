"""Encode a source of a recipe, or take its samples from the cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyft.config.modes import MODES
from pyft.config.schema import DataSource, Stage
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.prepared.cache import SampleCache, cache_folder, make_key
from pyft.data.prepared.chunk import ChunkEncoder
from pyft.data.prepared.counts import Counts, FileCounts, SourceCounts
from pyft.data.prepared.pipeline import Poll, choose_num_workers, encode_files
from pyft.data.prepared.store import SampleStore, StoreWriter
from pyft.data.reading.chunks import head_id
from pyft.data.reading.files import expand_source
from pyft.data.reading.identity import content_id, stream_id
from pyft.data.reading.source_file import DataFile
from pyft.data.rows.formats import describe

STREAM_ROWS = 2000
_SHOWN_FILES = 8


def encode_options(stage: Stage) -> EncodeOptions:
    """Return how the rows of a stage become samples; the mode decides `overlong` if it is null."""
    data = stage.data
    mode = MODES[stage.mode]
    overlong = data.overlong or mode.overlong
    return EncodeOptions(mode, data.max_length, overlong, data.train_on, data.train_on_eot, data.system)


class SourceReader:
    """Prepares the sources of one stage; `notes` says in lines how their files were read.

    `template` is None where rows are plain texts; what `poll` raises ends the work.
    """

    def __init__(self, stage: Stage, tokenizer: Any, template: ChatTemplate | None, poll: Poll) -> None:
        self._stage, self._poll = stage, poll
        self._options = encode_options(stage)
        end_ids = frozenset(template.stop_token_ids(tokenizer)) if template is not None else frozenset()
        self.encoder = ChunkEncoder(
            RowEncoder(tokenizer, template, self._options), end_ids, stage.data.on_bad_record == "skip"
        )
        self._identity = describe_tokenizer(tokenizer) | {"template": template and template.source}
        self._cache: SampleCache | None = None
        self._content_ids: dict[DataFile, str] = {}
        self._notes: list[str] = []

    def content_ids(self, source: DataSource) -> list[str]:
        """Identify the content of each file of a source, in order."""
        for file in expand_source(source)[0]:
            if file not in self._content_ids:
                self._poll()
                self._content_ids[file] = self._name_content(source, file)
        return [self._content_ids[file] for file in expand_source(source)[0]]

    def prepare(self, source: DataSource) -> tuple[SampleStore, SourceCounts]:
        """Prepare one source: its samples, and what became of its rows."""
        files, notes = expand_source(source)
        key = make_key(self._describe(source, files))
        if self._cache is None:
            self._cache = SampleCache(cache_folder(self._stage.data.cache_dir))
        paths = [file.path for file in files]
        store, content, folder = self._cache.get(
            key, paths, lambda target: self._build(target, source, files).to_json()
        )
        counts = SourceCounts.from_json(content)
        self._notes += [*notes, *_describe_files(paths, counts.files), *_describe_errors(counts)]
        if folder is not None and counts.seconds > 1:
            self._notes.append(f"{source.path}: prepared before, read from {folder}")
        return store, counts

    @property
    def notes(self) -> list[str]:
        cache_note = self._cache.note if self._cache is not None else None
        return [*self._notes, cache_note] if cache_note else self._notes

    def _describe(self, source: DataSource, files: Sequence[DataFile]) -> dict[str, Any]:
        """Collect everything that decides which samples a source has."""
        skips = self.encoder.skips_bad_records
        return {
            **self._identity,
            "options": asdict(self._options),
            "contents": self.content_ids(source),
            "source": source.model_dump(include={"format", "map", "columns", "system", "max_samples"}),
            "seed": None if source.max_samples is None else self._stage.train.seed,
            # Messages about rows that are skipped name their file.
            "skips": [file.path for file in files] if skips else None,
            "kinds": [[file.kind, file.compression] for file in files],
            "first_rows": self._first_rows(source),
        }

    def _name_content(self, source: DataSource, file: DataFile) -> str:
        if not self._streams(source):
            return content_id(file)
        head = "" if file.kind == "hub" else f" {head_id(file, STREAM_ROWS)}"
        return stream_id(file) + head

    def _first_rows(self, source: DataSource) -> int:
        """Return how many rows of a stream are prepared: its beginning; 0 for all."""
        return min(STREAM_ROWS, source.max_samples or STREAM_ROWS) if self._streams(source) else 0

    def _streams(self, source: DataSource) -> bool:
        return self._stage.data.streaming and source in self._stage.data.train

    def _build(self, target: Path, source: DataSource, files: Sequence[DataFile]) -> SourceCounts:
        started = time.monotonic()
        writer = StoreWriter(target)
        counts = SourceCounts(files=[FileCounts() for _ in files])
        try:
            for number, format, chunk in encode_files(
                files,
                source,
                self.encoder,
                num_workers=choose_num_workers(self._stage.data.num_workers, files),
                seed=self._stage.train.seed,
                poll=self._poll,
                first_rows=self._first_rows(source),
            ):
                writer.add(chunk, number)
                counts.add(chunk.counts)
                file = counts.files[number]
                file.format = format
                file.rows += chunk.counts.rows_read
                file.unused.update(chunk.unused)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        counts.seconds = round(time.monotonic() - started, 3)
        return counts


def _describe_files(paths: Sequence[str], files: Sequence[FileCounts]) -> list[str]:
    lines = [
        describe(path, file.format, file.rows, file.unused)
        for path, file in zip(paths, files, strict=True)
        if file.format is not None
    ]
    if len(lines) <= _SHOWN_FILES:
        return lines
    more = sum(file.rows for file in files[_SHOWN_FILES:])
    return [*lines[:_SHOWN_FILES], f"and {len(lines) - _SHOWN_FILES} more files, {more} rows"]


def _describe_errors(counts: Counts) -> list[str]:
    num_bad, errors = counts.dropped["bad_record"], counts.errors
    if not num_bad:
        return []
    first = f", the first {len(errors)}" if num_bad > len(errors) else ""
    return [f"{num_bad} rows cannot be used and are skipped{first}:", *(f"  {error}" for error in errors)]


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Name a tokenizer by content: plain data, equal for tokenizers that give the same ids."""
    return {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
    }
