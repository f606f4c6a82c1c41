"""How linear_cross_entropy cuts its work on a GPU: a function of shapes and of what is wanted, nothing else.

                         |   panels                                  chunks
    products in memory   |   panel_rows x 4096 ids                   chunk_rows x V
    matrix products      |   2 (logits, dHidden)                     2, and 1 for dW
    fits                 |   a frozen head, or no gradient           a head that trains, or label smoothing

Label smoothing's gradient is a second sum over the head's rows, as dear as the first, in panels; a chunk has
it for nothing. A chunk's products turn into their gradient in place.

How many rows a chunk has decides how often the head, and its gradient's sum, pass through memory; the fewest
chunks cost the most memory. One chunk, however, needs no sum of dW in float32 (4 V K bytes): as long as its
products are no larger than that sum beside products of 1024 rows, all rows go in one.

Shapes: R rows to work on, K hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

PANEL_IDS = 4096  # the kernel's limit; 32 MiB of a head of 4096 features, which stays in the L2 cache
PANEL_ROWS = 2048  # products of 32 MiB
FROZEN_CHUNK_ROWS = 512  # enough for the product to be bound by arithmetic
TRAINED_CHUNK_ROWS = 1024  # the sum of dW is read and written once a chunk


class Plan(NamedTuple):
    """How the work is cut.

    Attributes:
        by_panels: panels of the vocabulary; otherwise all of it, for a chunk of rows.
        num_rows: R.
        chunk_rows: rows worked on at a time, with panels too.
        panel_ids: ids of the vocabulary worked on at a time.
        row_stride: floats from one row of products to the next, a multiple of 8: rows of 16 bytes each.
        sums_head: dW is summed over chunks in float32, then rounded.
        workspace_bytes: of all buffers at their largest, outputs and torch's own workspaces not counted.
    """

    by_panels: bool
    num_rows: int
    chunk_rows: int
    panel_ids: int
    row_stride: int
    sums_head: bool
    workspace_bytes: int

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Begin and end of each chunk of rows."""
        return _cut(self.num_rows, self.chunk_rows)

    def panels(self, vocabulary: int) -> list[tuple[int, int]]:
        """Cut the vocabulary.

        Args:
            vocabulary: V.

        Returns:
            Begin and end of each panel.
        """
        return _cut(vocabulary, self.panel_ids)

    def __str__(self) -> str:
        how = f"panels of {self.panel_ids} ids" if self.by_panels else "the whole vocabulary"
        sums = ", head's gradient summed in float32" if self.sums_head else ""
        return (
            f"{self.num_rows} rows in {len(self.chunks)} chunks of {self.chunk_rows}, {how}{sums}, "
            f"{self.workspace_bytes / 2**20:.1f} MiB of workspace"
        )


def plan_linear_cross_entropy(
    num_rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    *,
    wanted: list[bool],
    smooths: bool,
    panel_ids: int = PANEL_IDS,
    panel_rows: int = PANEL_ROWS,
    frozen_chunk_rows: int = FROZEN_CHUNK_ROWS,
    trained_chunk_rows: int = TRAINED_CHUNK_ROWS,
) -> Plan:
    """Choose panels or chunks, and their sizes.

    Args:
        num_rows: R.
        width: K.
        vocabulary: V.
        dtype: hidden's.
        wanted: whether hidden's, the head's and the bias' gradients are wanted.
        smooths: whether there is label smoothing.
        panel_ids: largest number of ids in a panel, at most 4096.
        panel_rows: largest number of rows worked on at a time with panels.
        frozen_chunk_rows: the same with chunks and a head that does not train.
        trained_chunk_rows: the same where the head's gradient is summed over chunks.

    Returns:
        The plan.
    """
    by_panels = not any(wanted[1:]) and not (wanted[0] and smooths)
    is_narrow = dtype != torch.float32
    if by_panels:
        most_rows, ids = panel_rows, min(panel_ids, vocabulary)
    elif wanted[1]:
        spared = width if is_narrow else 0  # rows whose products are as large as a sum of dW in float32
        most_rows, ids = trained_chunk_rows, vocabulary
        most_rows = num_rows if num_rows <= most_rows + spared else most_rows
    else:
        most_rows, ids = frozen_chunk_rows, vocabulary
    num_chunks = -(-num_rows // max(most_rows, 1))
    chunk_rows = -(-num_rows // max(num_chunks, 1))  # of equal size: a short last one reads the head for few
    row_stride = -(-ids // 8) * 8
    sums_head = wanted[1] and is_narrow and num_chunks > 1
    floats = chunk_rows * (row_stride + (width if wanted[0] else 0)) + num_rows + (4 * chunk_rows)
    floats += vocabulary * width if sums_head else 0
    workspace_bytes = 4 * floats + chunk_rows * width * dtype.itemsize + 16 * num_rows
    return Plan(by_panels, num_rows, chunk_rows, ids, row_stride, sums_head, workspace_bytes)


def _cut(length: int, size: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + size, length)) for begin in range(0, length, max(size, 1))]
