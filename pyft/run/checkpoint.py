"""Checkpoints: folders that are whole or absent, told apart from damaged ones by their manifest.

    .checkpoint-20.staging/     written here, every file synced, each hashed as it lies on the disk
        <weights files>         by the caller's function
        optimizer.safetensors   moments, step counts, float32 master weights
        rng_state.safetensors   every generator
        trainer_state.json      position, counters, lengths of the logs, identity
        manifest.json           last: size and SHA-256 of every other file
    checkpoint-20/              the same folder after one rename, and a sync of its parent

A folder is removed the other way round: renamed to a dot-name first, so that no half of it is ever found.
What a checkpoint means to a run is decided in resume.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pyft.run.faults import Faults
from pyft.run.files import (
    check_room,
    disk_errors,
    remove,
    removed_on_error,
    sync_file,
    sync_folder,
    write_new_file,
)

MANIFEST_NAME = "manifest.json"
OPTIMIZER_NAME = "optimizer.safetensors"
RNG_NAME = "rng_state.safetensors"
STATE_NAME = "trainer_state.json"
_FORMAT = "pyft-checkpoint-1"
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.(checkpoint-\d+|result)\.(staging|trash)")


def write_checkpoint(
    folder: Path,
    step: int,
    writers: Sequence[Callable[[Path], None]],
    *,
    needed_bytes: int,
    faults: Faults | None = None,
) -> Path:
    """Write `checkpoint-<step>` into a run's folder, where nothing of that name is.

    Args:
        folder: the run's folder.
        step: optimizer steps done.
        writers: called one after another with the staging folder, each writing its files there.
        needed_bytes: about how many bytes that takes; fewer free ones are found before anything is written.
        faults: where to strike.

    Returns:
        The checkpoint's folder.

    A full or read-only disk is a DiskError; nothing of the new checkpoint is left, no old one is touched.
    """
    faults = faults or Faults("")
    final = folder / f"checkpoint-{step}"
    staging = folder / f".{final.name}.staging"
    check_room(final, needed_bytes)
    with disk_errors(final, needed_bytes), removed_on_error(staging):
        remove(staging)
        staging.mkdir()
        for number, write in enumerate(writers):
            if number == 1:
                faults.kill("kill_between_files", step)
            write(staging)
        seal(staging, {"step": step})
        faults.kill("kill_before_rename", step)
        os.rename(staging, final)
        sync_folder(folder)
    return final


def seal(folder: Path, facts: dict[str, object]) -> None:
    """Make a folder's files final, and writes the manifest last.

    Args:
        folder: the folder.
        facts: further entries of the manifest.
    """
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in settle(folder)
    }
    manifest = {"format": _FORMAT, **facts, "files": entries}
    write_new_file(folder / MANIFEST_NAME, json.dumps(manifest, indent=1).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(path)
    sync_folder(folder)


def publish(folder: Path, write: Callable[[Path], None], *, needed_bytes: int) -> None:
    """Write a run's result into its folder: staged as a checkpoint is, then moved in, one file after
    another.

    Args:
        folder: the run's folder. A file or link of the same name is replaced, never written through.
        write: writes the files into the staging folder it is given.
        needed_bytes: about how many bytes that takes.

    A full or read-only disk is a DiskError.
    """
    staging = folder / ".result.staging"
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
        sync_folder(folder)


def settle(folder: Path) -> list[Path]:
    """Give every file the mode that the umask wants and syncs it.

    Libraries make files with mode 0600 (safetensors does, through a temporary file) whatever the umask says,
    and then a server of another user finds no weights; the mode wanted is seen on a file made here.

    Args:
        folder: the folder.

    Returns:
        Its files, those of folders in it too, in order of their names.
    """
    probe = folder / ".mode"
    write_new_file(probe, b"")
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(mode)
        sync_file(path)
    return files


def problems(checkpoint: Path, *, hashes: bool = True) -> list[str]:
    """Look for damage.

    Args:
        checkpoint: the checkpoint's folder.
        hashes: compare the contents too, not the sizes alone.

    Returns:
        What is wrong, naming the files; empty for a whole checkpoint. A missing file reads `missing: <name>`.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST_NAME).read_bytes())
        entries = {
            str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()
        }
    except OSError as error:
        return [f"{MANIFEST_NAME}: {error.strerror}"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [f"{MANIFEST_NAME}: is not a checkpoint's manifest"]
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


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Find the checkpoints of a run, whole or not, oldest first, as (step, folder)."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


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
    whole = [path for _, path in list_checkpoints(folder) if not problems(path, hashes=False)]
    kept = whole[-limit:]
    if not kept:
        return []
    oldest_kept = step_of(kept[0])
    gone = [
        path
        for step, path in list_checkpoints(folder)
        if path not in kept
        and (keep is None or not _same(path, keep))
        and (path in whole or step < oldest_kept)
    ]
    for path in gone:
        _set_aside(path)
    return gone


def supersede(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints past `step`: the run goes on from there, and they are of the course it leaves.

    Under their own names they would be the newest at the next resumption, with log lengths of another course.

    Args:
        folder: the run's folder.
        step: the step resumed from.

    Returns:
        Their new names, `superseded-checkpoint-<step>`, which no resumption looks at.
    """
    renamed = []
    for number, path in list_checkpoints(folder):
        if number > step:
            aside = path.with_name(f"superseded-{path.name}")
            remove(aside)
            os.rename(path, aside)
            renamed.append(aside)
    return renamed


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what a killed process left half-written or half-removed; gives the names."""
    names = sorted(path.name for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))
    for name in names:
        remove(folder / name)
    return names


def step_of(checkpoint: Path) -> int:
    """Read the step off a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"no checkpoint's name: {checkpoint}")
    return int(match[1])


def _set_aside(path: Path) -> None:
    """Take a folder (or a link in its place) out of sight in one stroke, then removes it."""
    if not os.path.lexists(path):
        return
    trash = path.with_name(f".{path.name}.trash")
    remove(trash)
    os.rename(path, trash)
    remove(trash)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
