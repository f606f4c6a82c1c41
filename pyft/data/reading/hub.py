"""Read a data set of the Hugging Face hub row by row, without downloading it whole: hf://owner/name.

The only place that imports `datasets`. It fails in many ways; each is answered with the data set, what went
wrong, and the way that always works: download the files and name them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pyft.config.schema import HUB_PREFIX
from pyft.data.reading.source_file import DataFile
from pyft.data.reading.tables import without_nulls
from pyft.errors import DataError, first_line


def read_hub(file: DataFile) -> Iterator[tuple[Any, str | None]]:
    """Yield (row, None) for every row of one split; a failure raises DataError."""
    import datasets

    _check_name(file)
    try:
        rows = datasets.load_dataset(_name(file), file.name, split=file.split, streaming=True)
        for row in rows:
            yield {key: without_nulls(value) for key, value in row.items()}, None
    except Exception as error:  # whatever its readers and the network raise: see the module's text
        raise DataError(_describe(file, error)) from error


def revision(file: DataFile) -> str:
    """Return what `datasets` identifies the current version by, the commit on the hub included."""
    import datasets

    _check_name(file)
    try:
        return str(datasets.load_dataset_builder(_name(file), file.name).hash)
    except Exception as error:  # as above
        raise DataError(_describe(file, error)) from error


def _check_name(file: DataFile) -> None:
    # `datasets` reads a folder of that name instead, whose changes its revision does not tell.
    if os.path.exists(_name(file)):
        raise DataError(
            f"{file.path}: there is a folder {_name(file)} here, which would be read instead: name that "
            "folder as the path, or work in another folder"
        )


def _name(file: DataFile) -> str:
    return file.path.removeprefix(HUB_PREFIX)


def _describe(file: DataFile, error: Exception) -> str:
    which = f"{file.path} (name {file.name}, split {file.split})" if file.name else file.path
    return (
        f"{which}: the data set cannot be read ({first_line(error)}): check its name and split and the "
        "network, or download its files and name their folder"
    )
