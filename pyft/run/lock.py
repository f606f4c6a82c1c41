"""One run, one output folder: who may write there, found out before anything expensive happens.

`claim_folder` makes the folder, sees that it is a run's own and writable, and holds a lock on it until
closed. The lock is the operating system's (flock): it goes when its process goes, however that ends; the
file stays. Where a finished run lies, nothing is written at all, not even into the lock file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pyft.errors import ConfigError, DiskError
from pyft.run.files import open_for_append, write_new_file

LOCK_NAME = ".pyft.lock"
FINISHED_NAME = "finished.json"
_OWN_NAMES = (LOCK_NAME, "trainer_log.jsonl", FINISHED_NAME)


class RunLock:
    """The lock on a run's folder; a context that lets go at its end."""

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Lets go of the folder; calling it again is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim_folder(folder: Path) -> RunLock:
    """Make a run's folder ready and takes it. One that cannot be made or written is a DiskError.

    Args:
        folder: the output folder; it and its parents are made when absent.

    Returns:
        The lock, held until it is released or the process ends.

    Raises:
        ConfigError: another process has the folder. So is one that is no folder, or holds foreign things.
    """
    with _folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_own(folder)
        is_finished = _holds_finished_run(folder)
        if not is_finished:
            _check_writable(folder)
        descriptor = _open_lock(folder / LOCK_NAME, read_only=is_finished)
        is_taken = not _try_lock(descriptor)
    if is_taken:
        os.close(descriptor)
        holder = (folder / LOCK_NAME).read_text(errors="replace").strip()
        raise ConfigError(
            f"another process {f'(pid {holder}) ' if holder else ''}is writing there "
            f"(train.output_dir {folder}): wait for it, or choose another folder"
        )
    if not is_finished:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return RunLock(descriptor)


def check_own(folder: Path) -> None:
    """Refuses a folder with foreign things in it, so that no run is mixed into somebody's files.

    Args:
        folder: an existing folder, or what stands in its place.

    Raises:
        ConfigError: it is not empty and has no trace of a run, or is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"is not a folder (train.output_dir {folder}): choose another")
    names = sorted(entry.name for entry in folder.iterdir())
    if names and not any(name in names for name in _OWN_NAMES):
        raise ConfigError(
            f"holds files that are no run's, {names[0]!r} for one (train.output_dir {folder}): "
            "choose an empty or a new folder"
        )


def _holds_finished_run(folder: Path) -> bool:
    """Tells whether a run, or a stage of one, ended here: then nothing is touched, not even the lock file."""
    return (folder / FINISHED_NAME).exists() or any(folder.glob(f"*/{FINISHED_NAME}"))


def _open_lock(path: Path, *, read_only: bool) -> int:
    if read_only and path.is_file():
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return open_for_append(path)


def _check_writable(folder: Path) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        write_new_file(probe, b"x" * 4096)
    finally:
        probe.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    """Says which of the user's choices an error of the system is about."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"is not a folder, or lies below a file (train.output_dir {folder}): choose another"
        ) from error
    except OSError as error:
        raise DiskError(
            f"cannot be written (train.output_dir {folder}): {error.strerror}; choose another folder"
        ) from error
