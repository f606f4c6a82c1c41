"""Keep prepared samples by what they are made of, so that the second run begins at once.

    <cache>/data/<key>/   input_ids.int32  labels.int32  cut_text.utf8  index.npz  entry.json

The key is a SHA-256 over file contents, tokenizer, template, options and the code of pyft.data: changing any
of these misses, a changed name or time does not. An entry is written under another name, synced and renamed:
one that is there is whole, and a killed run leaves nothing that is ever used; the next one removes it. An
entry that does not fit its own description is made again. Entries that nobody used for 30 days are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pyft.data.prepared.store import INDEX_NAME, STORE_NAMES, SampleStore
from pyft.disk import is_disk_error, sync, try_lock
from pyft.errors import DiskError

ENTRY_NAME = "entry.json"
_STAGING_PREFIX = ".staging-"
_LOCK_NAME = "lock"
_UNUSED_DAYS = 30
# An unfinished entry is abandoned if it is this old and nobody locks it; without locks, if older still.
_BEGUN_SECONDS = 60
_STALE_DAYS = 2
_DAY_SECONDS = 86_400

# Writes a store into the folder and returns the entry's description.
Build = Callable[[Path], dict[str, Any]]


def cache_folder(given: str | None) -> Path:
    """Return data.cache_dir, or $PYFT_CACHE_DIR, or pyft's folder among the user's caches."""
    if given:
        return Path(given)
    if os.environ.get("PYFT_CACHE_DIR"):
        return Path(os.environ["PYFT_CACHE_DIR"]).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches) / "pyft"


def make_key(parts: Mapping[str, Any]) -> str:
    """Name an entry by everything that decides what is in it."""
    description = json.dumps({**parts, "code": _hash_code()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(description.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _hash_code() -> str:
    """Hash the sources of pyft.data: an entry made by other code is not used."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.is_file() and path.suffix in (".py", ".yaml", ".jinja"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class SampleCache:
    """The entries of one cache folder; a temporary folder where that one cannot be written."""

    def __init__(self, folder: Path) -> None:
        """Open a cache; make its folder where it is missing."""
        self.note: str | None = None
        self._folder = folder / "data"
        self._keeps = True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.rmdir(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=self._folder))
        except OSError as error:
            self._folder, self._keeps = Path(tempfile.gettempdir()), False
            self.note = (
                f"{folder}: prepared data cannot be kept there ({error.strerror or error}), and are made "
                "again in every run: set data.cache_dir or PYFT_CACHE_DIR"
            )
        else:
            self._remove_old()

    def get(
        self, key: str, paths: Sequence[str], build: Build
    ) -> tuple[SampleStore, dict[str, Any], Path | None]:
        """Open an entry, made first by `build` where it is not there: what that raises leaves no entry.

        `paths` name the files it is made of, in order. Return the samples, the description that `build` gave,
        and the folder of an entry that was there already. DiskError if the entry cannot be written.
        """
        folder = self._folder / key
        if self._keeps:
            opened = _open(folder, paths)
            if opened is not None:
                return *opened, folder
            shutil.rmtree(folder, ignore_errors=True)
        with _staging(self._folder) as staging:
            try:
                _describe(staging, build(staging))
            except OSError as error:
                if not is_disk_error(error):
                    raise
                raise DiskError(
                    f"the prepared data cannot be written: {error.strerror or error} ({self._folder}): free "
                    "some space there, or set data.cache_dir or PYFT_CACHE_DIR"
                ) from error
            # Without a cache folder the store is read from unlinked files, which end with this process.
            opened = (_open(_publish(staging, folder), paths) if self._keeps else None) or _open(
                staging, paths
            )
        if opened is None:
            raise RuntimeError(f"{folder} cannot be read after it was written")
        return *opened, None

    def _remove_old(self) -> None:
        for entry in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if entry.name.startswith(_STAGING_PREFIX):
                    is_old = _is_abandoned(entry)
                else:
                    is_old = _age_seconds(entry / ENTRY_NAME) > _UNUSED_DAYS * _DAY_SECONDS
                if is_old:
                    shutil.rmtree(entry)


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A folder to write an entry into, locked as long as its process lives."""
    folder = parent / f"{_STAGING_PREFIX}{uuid.uuid4().hex}"
    # Not a private folder: what the umask lets others read, they may use.
    folder.mkdir()
    try:
        with open(folder / _LOCK_NAME, "wb") as lock:
            with contextlib.suppress(OSError):
                try_lock(lock.fileno())
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(staging: Path) -> bool:
    """Say whether the process that wrote into a folder is gone."""
    age = _age_seconds(staging)
    if age < _BEGUN_SECONDS:
        return False
    try:
        with open(staging / _LOCK_NAME, "rb") as lock:
            return try_lock(lock.fileno())
    except OSError:
        return age > _STALE_DAYS * _DAY_SECONDS


def _age_seconds(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _publish(staging: Path, folder: Path) -> Path:
    """Give an entry its name."""
    (staging / _LOCK_NAME).unlink()
    try:
        os.rename(staging, folder)
    except OSError:
        # Another run has made the same entry meanwhile: it has the same content.
        if not folder.is_dir():
            raise
    return folder


def _describe(folder: Path, content: dict[str, Any]) -> None:
    """Write the description of a store, after the store is on the disk."""
    for name in STORE_NAMES:
        sync(folder / name)
    description = {
        "sizes": {name: (folder / name).stat().st_size for name in STORE_NAMES},
        "index_sha256": hashlib.sha256((folder / INDEX_NAME).read_bytes()).hexdigest(),
        "content": content,
    }
    (folder / ENTRY_NAME).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    sync(folder / ENTRY_NAME)
    sync(folder)


def _open(folder: Path, paths: Sequence[str]) -> tuple[SampleStore, dict[str, Any]] | None:
    """Open an entry; None where it is absent or damaged."""
    try:
        description = json.loads((folder / ENTRY_NAME).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in description["sizes"]}
        digest = hashlib.sha256((folder / INDEX_NAME).read_bytes()).hexdigest()
        if sizes != description["sizes"] or digest != description["index_sha256"]:
            return None
        store = SampleStore(folder, paths)
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY_NAME)
        return store, description["content"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
