"""What becomes of a sample that is longer than max_length, and of one in which nothing is learned.

drop        the row is left out
truncate    [....]            the rest is cut
split       [....][....][..]  windows; no token is lost (documents)
error       the row is refused
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyft.data.encode.sample import IGNORED, EncodedRow, EncodeOptions, Sample


def fit(sample: Sample, options: EncodeOptions, start_of: Callable[[int], int], **counts: Any) -> EncodedRow:
    """Make a sample's row, within max_length.

    Args:
        sample: Everything the row has.
        options: Gives max_length and what to do beyond it.
        start_of: The first character of the token at an index, for the texts of parts.
        **counts: Further fields of the row.

    Returns:
        The row.
    """
    num_tokens = len(sample.input_ids)
    limit = options.max_length
    counts = {"num_tokens": num_tokens, "longest": num_tokens} | counts
    if not learns(sample.labels):
        return EncodedRow((), tokens_cut=num_tokens, dropped="no_trained_tokens", **counts)
    if limit is None or num_tokens <= limit:
        return EncodedRow((sample,), **counts)
    if options.overlong == "error":
        return EncodedRow((), error=_describe_overlong(sample.source, num_tokens, limit))
    if options.overlong == "drop":
        return EncodedRow((), tokens_cut=num_tokens, dropped="overlong", **counts)
    if options.overlong == "truncate":
        return _truncate(sample, limit, start_of, counts)
    return _split(sample, limit, start_of, counts)


def learns(labels: list[int]) -> bool:
    """Say whether anything is learned from labels: the first token has nothing it could be told from.

    Args:
        labels: A sample's.

    Returns:
        True where a label but the first is learned.
    """
    return labels.count(IGNORED) < len(labels) - (labels[:1] != [IGNORED])


def _describe_overlong(source: str, num_tokens: int, limit: int) -> str:
    return (
        f"{source}: the row has {num_tokens} tokens, more than data.max_length {limit}: raise it, or write "
        "data.overlong: drop or truncate"
    )


def _part(sample: Sample, first: int, last: int, start_of: Callable[[int], int]) -> Sample:
    text = ""
    if sample.text:
        end = start_of(last) if last < len(sample.input_ids) else len(sample.text)
        text = sample.text[start_of(first) if first else 0 : end]
    return Sample(sample.input_ids[first:last], sample.labels[first:last], sample.source, text)


def _truncate(
    sample: Sample, limit: int, start_of: Callable[[int], int], counts: dict[str, Any]
) -> EncodedRow:
    kept = _part(sample, 0, limit, start_of)
    num_tokens = len(sample.input_ids)
    if not learns(kept.labels):
        return EncodedRow((), tokens_cut=num_tokens, dropped="no_trained_tokens", **counts)
    cut_text = sample.text[len(kept.text) :] + counts.pop("cut_text", "")
    return EncodedRow((kept,), tokens_cut=num_tokens - limit, cut_text=cut_text, **counts)


def _split(sample: Sample, limit: int, start_of: Callable[[int], int], counts: dict[str, Any]) -> EncodedRow:
    windows = [_part(sample, first, last, start_of) for first, last in _cut(len(sample.input_ids), limit)]
    kept = tuple(window for window in windows if IGNORED not in window.labels or learns(window.labels))
    num_kept = sum(len(window.input_ids) for window in kept)
    longest = max(len(window.input_ids) for window in windows)
    return EncodedRow(kept, tokens_cut=len(sample.input_ids) - num_kept, **counts | {"longest": longest})


def _cut(num_tokens: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cut into windows; a single token left over, which alone teaches nothing, gets one from before."""
    first = 0
    while first < num_tokens:
        last = min(first + limit, num_tokens)
        if num_tokens - last == 1 and limit > 2:
            last -= 1
        yield first, last
        first = last
