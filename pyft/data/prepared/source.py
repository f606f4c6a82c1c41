"""Bring a source of a recipe to encoded samples, from the cache where they are there already."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyft.config.modes import MODES
from pyft.config.schema import DataSource, Stage
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.prepared.cache import SampleCache, cache_folder, make_key
from pyft.data.prepared.chunk import ChunkEncoder
from pyft.data.prepared.pipeline import FileChunk, Poll, choose_num_workers, encode_files
from pyft.data.prepared.store import SampleStore, StoreWriter
from pyft.data.reading.chunks import head_id
from pyft.data.reading.files import expand_source
from pyft.data.reading.identity import content_id, stream_id
from pyft.data.reading.source_file import DataFile
from pyft.data.rows.formats import RowFormat, describe

STREAM_ROWS = 2000
_SHOWN_FILES = 8
_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class PreparedSource:
    """The samples of a source, its counts by name, and lines that say how its files were read."""

    store: SampleStore
    content: dict[str, Any]
    notes: list[str]


def encode_options(stage: Stage) -> EncodeOptions:
    """Say how the rows of a stage become samples.

    Args:
        stage: The stage.

    Returns:
        The options, `overlong` settled by the mode where the recipe leaves it open.
    """
    data = stage.data
    mode = MODES[stage.mode]
    overlong = data.overlong or mode.overlong
    return EncodeOptions(mode, data.max_length, overlong, data.train_on, data.train_on_eot, data.system)


class SourceReader:
    """Prepares the sources of one stage."""

    def __init__(self, stage: Stage, tokenizer: Any, template: ChatTemplate | None, poll: Poll) -> None:
        """Get ready.

        Args:
            stage: The stage.
            tokenizer: A fast tokenizer.
            template: The chat template; None where rows are plain texts.
            poll: Called while rows are prepared; what it raises ends the work.
        """
        self._stage, self._poll = stage, poll
        self._options = encode_options(stage)
        end_ids = frozenset(template.stop_token_ids(tokenizer)) if template is not None else frozenset()
        self.encoder = ChunkEncoder(
            RowEncoder(tokenizer, template, self._options), end_ids, stage.data.on_bad_record == "skip"
        )
        self._identity = describe_tokenizer(tokenizer) | {"template": template and template.source}
        self._cache: SampleCache | None = None
        self._content_ids: dict[DataFile, str] = {}

    @property
    def note(self) -> str | None:
        """What has to be said about the cache, if anything."""
        return self._cache.note if self._cache is not None else None

    def content_ids(self, source: DataSource) -> list[str]:
        """Name the contents of a source's files.

        Args:
            source: The source.

        Returns:
            A name for each file, in order.
        """
        for file in expand_source(source)[0]:
            if file not in self._content_ids:
                self._poll()
                self._content_ids[file] = self._name_content(source, file)
        return [self._content_ids[file] for file in expand_source(source)[0]]

    def prepare(self, source: DataSource) -> PreparedSource:
        """Prepare one source.

        Args:
            source: The source.

        Returns:
            Its samples, counts and notes.
        """
        files, notes = expand_source(source)
        key = make_key(self._describe(source, files))
        if self._cache is None:
            self._cache = SampleCache(cache_folder(self._stage.data.cache_dir))
        paths = [file.path for file in files]
        store, content, folder = self._cache.get(
            key, paths, lambda target: self._build(target, source, files)
        )
        notes = [*notes, *_describe_files(paths, content["files"]), *_describe_errors(content)]
        if folder is not None and content["seconds"] > 1:
            notes.append(f"{source.path}: prepared before, read from {folder}")
        return PreparedSource(store, content, notes)

    def _describe(self, source: DataSource, files: Sequence[DataFile]) -> dict[str, Any]:
        """Everything that decides which samples a source gives."""
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
        """Of a stream only the beginning is prepared; 0 for all rows."""
        return min(STREAM_ROWS, source.max_samples or STREAM_ROWS) if self._streams(source) else 0

    def _streams(self, source: DataSource) -> bool:
        return self._stage.data.streaming and source in self._stage.data.train

    def _build(self, target: Path, source: DataSource, files: Sequence[DataFile]) -> dict[str, Any]:
        started = time.monotonic()
        writer = StoreWriter(target)
        counts = _SourceCounts(len(files))
        try:
            for chunk in encode_files(
                files,
                source,
                self.encoder,
                num_workers=choose_num_workers(self._stage.data.num_workers, files),
                seed=self._stage.train.seed,
                poll=self._poll,
                first_rows=self._first_rows(source),
            ):
                writer.add(chunk.encoded, chunk.file)
                counts.add(chunk)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return counts.content() | {"seconds": round(time.monotonic() - started, 3)}


class _SourceCounts:
    """Sums the counts of chunks."""

    def __init__(self, num_files: int) -> None:
        self._rows = [0] * num_files
        self._formats: list[RowFormat | None] = [None] * num_files
        self._unused: list[Counter[str]] = [Counter() for _ in range(num_files)]
        self._dropped: Counter[str] = Counter()
        self._tally: Counter[str] = Counter()
        self._errors: list[str] = []
        self._longest = self._longest_dropped = 0

    def add(self, chunk: FileChunk) -> None:
        encoded, file = chunk.encoded, chunk.file
        self._rows[file] += encoded.num_records + chunk.num_not_sampled
        self._formats[file] = chunk.format
        self._unused[file].update(encoded.unused)
        self._dropped.update(encoded.dropped)
        self._dropped["not_sampled"] += chunk.num_not_sampled
        self._tally.update(encoded.tally)
        self._longest = max(self._longest, encoded.longest)
        self._longest_dropped = max(self._longest_dropped, encoded.longest_dropped)
        self._errors += encoded.errors_shown[: _SHOWN_ERRORS - len(self._errors)]

    def content(self) -> dict[str, Any]:
        files = [
            {"rows": rows, "format": format and asdict(format), "unused": unused}
            for rows, format, unused in zip(self._rows, self._formats, self._unused, strict=True)
        ]
        return {
            "rows_read": sum(self._rows),
            "files": files,
            "dropped": self._dropped,
            "tally": self._tally,
            "longest": self._longest,
            "longest_dropped": self._longest_dropped,
            "errors": self._errors,
        }


def _describe_files(paths: Sequence[str], files: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        describe(path, RowFormat(**file["format"]), file["rows"], file["unused"])
        for path, file in zip(paths, files, strict=True)
        if file["format"] is not None
    ]
    if len(lines) <= _SHOWN_FILES:
        return lines
    more = sum(file["rows"] for file in files[_SHOWN_FILES:])
    return [*lines[:_SHOWN_FILES], f"and {len(lines) - _SHOWN_FILES} more files, {more} rows"]


def _describe_errors(content: Mapping[str, Any]) -> list[str]:
    num_bad = content["dropped"].get("bad_record", 0)
    if not num_bad:
        return []
    first = f", the first {len(content['errors'])}" if num_bad > len(content["errors"]) else ""
    return [f"{num_bad} rows cannot be used and are skipped{first}:", *(f"  {e}" for e in content["errors"])]


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Name a tokenizer by content.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        Plain data, equal for tokenizers that give the same ids.
    """
    return {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
    }
