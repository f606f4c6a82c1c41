"""Files and folders that are whole or absent, on disk when said to be, never written through a symbolic link.

    replace_file     one file: staged beside its place, synced, renamed over it
    staged_folder    a folder: filled under another name, then renamed
    settle           what a library wrote into a folder: the mode that the umask gives, synced

Beside them: appending, removing, locking, and telling a full or read-only disk from other errors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pyft.errors import DiskError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

_DISK_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
# Libraries that write in another language report the system's error as text only: safetensors' "(os error
# 28)", torch.save's "unexpected pos 576 vs 534" after a short write.
_NUMBER_TEXT = re.compile(r"\(os error (\d+)\)")
_DISK_TEXT = re.compile(r"No space left|File too large|Disk quota|unexpected pos \d+ vs \d+")


# ---- whole or absent -------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Return once a file's bytes, or a folder's entries (names, renames, removals), are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, synced; its mode is what the umask leaves of rw-rw-rw-."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place in one stroke; whatever had the name before, a symbolic link too, is replaced.

    A full or read-only disk is a DiskError, and the old file, if any, is still there.
    """
    staged = staging_path(path)
    with disk_errors(path), removed_on_error(staged):
        remove(staged)
        write_new_file(staged, content)
        os.replace(staged, path)
        sync(path.parent)


def staging_path(path: Path) -> Path:
    """Name what is being written, until it is whole."""
    return path.with_name(f".{path.name}.staging")


@contextlib.contextmanager
def staged_folder(path: Path, staging: Path) -> Iterator[Path]:
    """Give an empty folder, `staging`, to fill: it becomes `path` in one stroke, or on an error is gone."""
    with removed_on_error(staging):
        remove(staging)
        staging.mkdir()
        yield staging
        os.rename(staging, path)
        sync(path.parent)


def settle(folder: Path) -> list[Path]:
    """Give the files below a folder the mode that the umask wants, sync all, and return them in order.

    Libraries make files with mode 0600 whatever the umask says (safetensors does, through a temporary file),
    and then a server of another user finds no weights.
    """
    mode = umask_mode(folder)
    entries = sorted(folder.rglob("*"))
    files = [path for path in entries if path.is_file()]
    for path in files:
        path.chmod(mode)
        sync(path)
    for path in (*(path for path in entries if path.is_dir()), folder):
        sync(path)
    return files


def umask_mode(folder: Path) -> int:
    """Find the mode that the umask gives a file, on one made in `folder` for that.

    Reading the umask itself would set it for a moment, for all threads.
    """
    probe = folder / f".mode-{os.getpid()}"
    write_new_file(probe, b"")
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove a file or folder when the block is left by an exception, whichever."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link (never what it points to) or a folder with everything in it; absent is fine."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()


# ---- appending and locking -------------------------------------------------------------------------------


def open_for_append(path: Path) -> int:
    """Open a file for appending, made if absent; a link, or a disk that cannot be written, is a DiskError."""
    with disk_errors(path):
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def try_lock(descriptor: int) -> bool:
    """Lock an open file for as long as it is open; False when another has it.

    Where the file system has no locks it is an OSError, ENOTSUP where the operating system has none.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


# ---- errors of the disk ----------------------------------------------------------------------------------


def is_disk_error(error: BaseException) -> bool:
    """Tell whether the disk is what failed, by the error's number or by a library's text."""
    return system_errno(error) in _DISK_ERRNOS or _DISK_TEXT.search(str(error)) is not None


def system_errno(error: BaseException) -> int | None:
    """Find the number of the system's error, or of the one that a library quotes in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER_TEXT.search(str(error))
    return None if found is None else int(found[1])


def disk_error(path: Path, error: BaseException, needed_bytes: int | None = None) -> DiskError | None:
    """Turn an error of writing `path` into a DiskError where the disk is what failed, else give None.

    `needed_bytes` is about how many the whole write takes.
    """
    if not is_disk_error(error):
        return None
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return DiskError(f"is a symbolic link, which is never written through ({path}): remove it")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DiskError(f"cannot be written ({path}): {reason}; {_space(path, needed_bytes)}")


@contextlib.contextmanager
def disk_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Raise a DiskError, as `disk_error` makes it, for each error of the disk in the block."""
    try:
        yield
    except Exception as error:
        if found := disk_error(path, error, needed_bytes):
            raise found from error
        raise


def check_room(path: Path, needed_bytes: int) -> None:
    """Raise a DiskError unless about that many bytes are free where `path` is to be written."""
    if free_bytes(path) < needed_bytes:
        raise DiskError(f"does not fit on the disk ({path}): {_space(path, needed_bytes)}")


def free_bytes(path: Path) -> int:
    """Count the bytes free to this user where `path` is, or is going to be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _space(path: Path, needed_bytes: int | None) -> str:
    free = f"{free_bytes(path)} bytes are free there: make room, or choose another train.output_dir"
    return free if needed_bytes is None else f"about {needed_bytes} bytes are needed, {free}"
