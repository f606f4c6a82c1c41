"""Checkpoints: folders that are whole or absent, told apart from damaged ones by their manifest.

    .checkpoint-20.staging/     every file is written here, synced, and hashed as it lies on the disk;
                                the manifest last
    checkpoint-20/              the same folder after one rename, and a sync of its parent

A folder is removed the other way round: renamed to a dot-name first, so that no half of it is ever found.
The files' names are in layout.py; what a checkpoint means to a run is decided in resume.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pyft.disk import (
    check_room,
    disk_errors,
    remove,
    removed_on_error,
    settle,
    staged_folder,
    staging_path,
    sync,
    write_new_file,
)
from pyft.run import layout
from pyft.run.faults import Faults
from pyft.run.layout import checkpoint_step, list_checkpoints

_FORMAT = "pyft-checkpoint-1"


def write_checkpoint(
    folder: Path,
    step: int,
    writers: Sequence[Callable[[Path], None]],
    *,
    needed_bytes: int,
    faults: Faults | None = None,
) -> Path:
    """Write `checkpoint-<step>` into a run's folder, where nothing of that name is; return its folder.

    The writers are called one after another with the staging folder, each writing its files there. If fewer
    than about `needed_bytes` are free, that is found before anything is written. A full or read-only disk is
    a DiskError; nothing of the new checkpoint is left then, and no old one is touched.
    """
    faults = faults or Faults("")
    final = folder / layout.checkpoint_name(step)
    check_room(final, needed_bytes)
    with disk_errors(final, needed_bytes), staged_folder(final, staging_path(final)) as staging:
        for number, write in enumerate(writers):
            if number == 1:
                faults.kill("kill_between_files", step)
            write(staging)
        _seal(staging, {"step": step})
        faults.kill("kill_before_rename", step)
    return final


def _seal(folder: Path, facts: dict[str, object]) -> None:
    """Make a folder's files final, and write the manifest last, with `facts` as further entries."""
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in settle(folder)
    }
    manifest = {"format": _FORMAT, **facts, "files": entries}
    write_new_file(folder / layout.MANIFEST, json.dumps(manifest, indent=1).encode())
    sync(folder)


def publish(folder: Path, write: Callable[[Path], None], *, needed_bytes: int) -> None:
    """Write a run's result into its folder: staged as a checkpoint is, then moved in file by file.

    A file or link of the same name is replaced, never written through. A full or read-only disk is a
    DiskError.

    Args:
        folder: the run's folder.
        write: writes the files into the staging folder it is given.
        needed_bytes: about how many bytes that takes.
    """
    staging = staging_path(folder / layout.RESULT)
    check_room(folder, needed_bytes)
    with disk_errors(folder, needed_bytes), removed_on_error(staging):
        remove(staging)
        staging.mkdir()
        write(staging)
        for path in settle(staging):
            final = folder / path.relative_to(staging)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
        remove(staging)
        sync(folder)


def problems(checkpoint: Path, *, hashes: bool = True) -> list[str]:
    """Say what is damaged, with the files' names; look at sizes, and where `hashes` is set at contents.

    A missing file reads `missing: <name>`.
    """
    try:
        manifest = json.loads((checkpoint / layout.MANIFEST).read_bytes())
        entries = {
            str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()
        }
    except OSError as error:
        return [f"{layout.MANIFEST}: {error.strerror}"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [f"{layout.MANIFEST}: is not a checkpoint's manifest"]
    found = []
    for name, (size, digest) in entries.items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"missing: {name}")
        elif path.stat().st_size != size:
            found.append(f"{name}: {path.stat().st_size} bytes, the manifest says {size}")
        elif hashes and _sha256(path) != digest:
            found.append(f"{name}: its SHA-256 is not the manifest's")
    return found


def rotate(folder: Path, limit: int, *, keep: Path | None = None) -> list[Path]:
    """Remove the oldest checkpoints over the limit.

    Args:
        folder: the run's folder.
        limit: how many whole checkpoints stay, at least 1: the newest ones. Damaged ones are not counted
            among them, and go when they are older than those that stay.
        keep: one more that stays, the one resumed from.

    Returns:
        The folders that are gone.
    """
    listed = list_checkpoints(folder)
    whole = [path for _, path in listed if not problems(path, hashes=False)]
    kept = whole[-limit:]
    if not kept:
        return []
    oldest_kept = checkpoint_step(kept[0])
    gone = [
        path
        for step, path in listed
        if path not in kept
        and (keep is None or path.resolve() != keep.resolve())
        and (path in whole or step < oldest_kept)
    ]
    for path in gone:
        _set_aside(path)
    return gone


def supersede(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints past `step`, where the run continues: they belong to the course it leaves.

    Under their own names they would be the newest at the next resumption, with log lengths of another course.
    """
    renamed = []
    for number, path in list_checkpoints(folder):
        if number > step:
            aside = path.with_name(layout.superseded_name(path))
            remove(aside)
            os.rename(path, aside)
            renamed.append(aside)
    return renamed


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in filter(layout.is_leftover, list(folder.iterdir())):
        remove(path)


def _set_aside(path: Path) -> None:
    """Take a folder (or a link in its place) out of sight in one stroke, then remove it."""
    if not os.path.lexists(path):
        return
    trash = path.with_name(layout.trash_name(path))
    remove(trash)
    os.rename(path, trash)
    remove(trash)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
