"""Files that are whole or absent, on disk when said to be, and never written through a symbolic link.

Small helpers over the operating system: sync, append, replace, remove, and telling a full disk from other
errors.
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
_DISK_TEXT = re.compile(
    r"\(os error (\d+)\)|No space left|File too large|Disk quota|unexpected pos \d+ vs \d+"
)


def sync_file(path: Path) -> None:
    """Return once the file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return once the folder's entries (names, renames, removals) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
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

    Args:
        path: the file's final name.
        content: all its bytes.

    A full or read-only disk is a DiskError, and the old file, if any, is still there.
    """
    staged = path.with_name(f".{path.name}.staging")
    with disk_errors(path), removed_on_error(staged):
        remove(staged)
        write_new_file(staged, content)
        os.replace(staged, path)
        sync_folder(path.parent)


def open_for_append(path: Path) -> int:
    """Open a file for appending, made if absent, and never through a symbolic link.

    Args:
        path: the file.

    Returns:
        Its descriptor. A link, or a disk that cannot be written, is a DiskError.
    """
    with disk_errors(path):
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


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


def disk_error(path: Path, error: BaseException, needed_bytes: int | None = None) -> DiskError | None:
    """Turn an error of writing into a DiskError where the disk is what failed.

    Args:
        path: what was being written.
        error: what was raised, by the operating system or by a library that hides its errno in a text.
        needed_bytes: about how many bytes the whole write takes.

    Returns:
        The error to raise, or None when `error` is of another kind.
    """
    found = _DISK_TEXT.search(str(error))
    from_text = found is not None and (found[1] is None or int(found[1]) in _DISK_ERRNOS)
    if not from_text and not (isinstance(error, OSError) and error.errno in _DISK_ERRNOS):
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


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove a file or folder when the block is left by an exception, whichever."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise


def check_room(path: Path, needed_bytes: int) -> None:
    """Sees that a write has room before it begins.

    Args:
        path: what is to be written.
        needed_bytes: about how many bytes that takes.

    Raises:
        DiskError: fewer are free.
    """
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
