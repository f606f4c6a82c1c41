"""One run, one output folder: who may write there, found out before anything expensive happens.

`claim_folder` makes the folder, sees that it is a run's own and writable, and holds a lock on it until
closed. The lock is the operating system's (flock): it goes when its process goes, however that ends; the
file stays. Where the system has none, the process whose number is in the file has the folder as long as it
runs. Where a finished run lies, nothing is written at all, not even into the lock file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pyft.disk import open_for_append, try_lock, write_new_file
from pyft.errors import ConfigError, DiskError
from pyft.run import layout

_OWN_NAMES = (layout.LOCK, layout.LOG, layout.FINISHED)


class RunLock:
    """The lock on a run's folder; a context that lets go at its end."""

    def __init__(self, descriptor: int, *, names_holder: bool):
        self._descriptor: int | None = descriptor
        self._names_holder = names_holder

    def release(self) -> None:
        """Let go of the folder; calling it again is harmless."""
        if self._descriptor is not None:
            if self._names_holder:
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim_folder(folder: Path) -> RunLock:
    """Make a run's folder, and its parents, where absent, and take it until the lock is released.

    One that another process has, that is no folder, or that holds other things than a run's, is a
    ConfigError; one that cannot be made or written is a DiskError.
    """
    with _folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_own(folder)
        is_finished = _holds_finished_run(folder)
        if not is_finished:
            _check_writable(folder)
        descriptor = _open_lock(folder / layout.LOCK, read_only=is_finished)
        is_taken = not _take(descriptor, folder / layout.LOCK)
    if is_taken:
        os.close(descriptor)
        holder = (folder / layout.LOCK).read_text(errors="replace").strip()
        raise ConfigError(
            f"another process {f'(pid {holder}) ' if holder else ''}is writing there "
            f"(train.output_dir {folder}): wait for it, or choose another folder"
        )
    if not is_finished:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return RunLock(descriptor, names_holder=not is_finished)


def _check_own(folder: Path) -> None:
    """Refuse, with a ConfigError, what is no folder, and a folder that holds files but no trace of a run."""
    if not folder.is_dir():
        raise ConfigError(f"is not a folder (train.output_dir {folder}): choose another")
    names = sorted(entry.name for entry in folder.iterdir())
    if names and not any(name in names for name in _OWN_NAMES):
        raise ConfigError(
            f"holds files that no run wrote, such as {names[0]!r} (train.output_dir {folder}): "
            "choose an empty or a new folder"
        )


def _holds_finished_run(folder: Path) -> bool:
    """Tell whether a run, or a stage of one, ended here: then nothing is touched, not even the lock file."""
    return (folder / layout.FINISHED).exists() or any(folder.glob(f"*/{layout.FINISHED}"))


def _open_lock(path: Path, *, read_only: bool) -> int:
    if read_only and path.is_file():
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    return open_for_append(path)


def _check_writable(folder: Path) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        write_new_file(probe, b"x" * 4096)
    finally:
        probe.unlink(missing_ok=True)


def _take(descriptor: int, path: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    holder = path.read_text(errors="replace").strip()
    return not holder.isdecimal() or not _is_running(int(holder))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    """Say which of the user's choices an error of the system is about."""
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
