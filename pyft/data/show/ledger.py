"""Count what becomes of every row and token; the table printed before training.

    rows_read                         = sum of dropped.<reason> + train.rows + validation.rows
    tokens_encoded + tokens_repeated  = tokens_cut + train.tokens + validation.tokens

These sums are checked whenever a ledger is made. `trained_tokens` are labels that are not -100;
`target_tokens` those of them that have a token before them in their sample, which is what the loss is
divided by. Rows in which nothing is trained are dropped before they are encoded, so their tokens are in no
count; nor are those of rows that `max_samples` left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyft.data.prepared.counts import TALLIES, Counts
from pyft.data.prepared.selection import Selection

_PERCENTILES = (50, 90, 99)
_LABELS = {
    "turns_cut": "turns cut (after the last answer)",
    "turns_shortened": "turns without their thinking or name",
    "rows_split": "rows split into windows",
    "rows_truncated": "rows truncated",
    "prompt_differs": "rows whose prompt reads differently",
    "rejected_unused": "rejected answers not learned",
    "duplicates": "validation samples also trained on",
}
# Lines of the table that most recipes have no use for.
_SHOWN_WHEN_ANY = {"not_sampled", "bad_record", "rows_truncated", "rejected_unused", "turns_shortened"}


def make_ledger(
    counts: Counts,
    train: Selection,
    validation: Selection,
    *,
    max_length: int | None,
    num_train_packs: int | None,
    num_validation_packs: int | None,
) -> dict[str, Any]:
    """Put the counts together as nested numbers, and check that they agree.

    A repeated sample counts as often as it is seen. The numbers of packs are None without packing.
    RuntimeError if a row or token is lost or counted twice.
    """
    ledger = {
        "rows_read": counts.rows_read,
        "dropped": dict(counts.dropped),
        **{name: counts.tally[name] for name in TALLIES},
        "tokens_encoded": counts.tally["tokens_encoded"],
        "tokens_repeated": counts.tally["tokens_repeated"],
        "tokens_cut": counts.tally["tokens_cut"],
        "train": _describe_part(train, max_length, num_train_packs),
        "validation": _describe_part(validation, max_length, num_validation_packs),
        "duplicates": _count_duplicates(train, validation),
    }
    check_ledger(ledger)
    return ledger


def check_ledger(ledger: Mapping[str, Any]) -> None:
    """Raise RuntimeError unless the sums agree."""
    train, validation = ledger["train"], ledger["validation"]
    rows = sum(ledger["dropped"].values()) + train["rows"] + validation["rows"]
    tokens = ledger["tokens_cut"] + train["tokens"] + validation["tokens"]
    encoded = ledger["tokens_encoded"] + ledger["tokens_repeated"]
    if rows != ledger["rows_read"] or tokens != encoded:
        raise RuntimeError(
            f"ledger: {ledger['rows_read']} rows read but {rows} accounted for, {encoded} tokens encoded or "
            f"repeated but {tokens} accounted for"
        )


def _describe_part(samples: Selection, max_length: int | None, num_packs: int | None) -> dict[str, Any]:
    lengths = np.sort(samples.lengths)
    tokens, trained = int(lengths.sum()), int(samples.trained.sum())
    part: dict[str, Any] = {
        "rows": len(np.unique(samples.rows)),
        "samples": len(samples),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": round(trained / tokens, 4) if tokens else 0.0,
        "target_tokens": int(samples.targets.sum()),
        "length": {f"p{p}": _percentile(lengths, p) for p in _PERCENTILES}
        | {"max": int(lengths[-1]) if len(lengths) else 0},
    }
    if num_packs is not None and max_length is not None:
        part["packs"] = num_packs
        part["fill"] = round(tokens / (num_packs * max_length), 4) if num_packs else 0.0
    return part


def _percentile(ascending: Sequence[int] | np.ndarray, percent: int) -> int:
    """Return the smallest length that at least `percent` of the lengths do not exceed; 0 if there is none."""
    return int(ascending[max(0, -(-len(ascending) * percent // 100) - 1)]) if len(ascending) else 0


def _count_duplicates(train: Selection, validation: Selection) -> int:
    """Count the validation samples that are also, token for token, training samples."""
    seen = {digest.tobytes() for digest in validation.digests}
    if not seen:
        return 0
    also = {name for digest in train.digests if (name := digest.tobytes()) in seen}
    return sum(digest.tobytes() in also for digest in validation.digests)


def format_ledger(ledger: Mapping[str, Any]) -> str:
    """Write the ledger as a table."""
    train, validation = ledger["train"], ledger["validation"]
    lines = [_line("rows read", ledger["rows_read"])]
    lines += [
        _line(f"  dropped: {reason}", count)
        for reason, count in ledger["dropped"].items()
        if count or reason not in _SHOWN_WHEN_ANY
    ]
    lines += [_line("  kept for training", train["rows"]), _line("  kept for validation", validation["rows"])]
    lines += [
        _line("tokens encoded", ledger["tokens_encoded"]),
        *([_line("tokens repeated (weight)", n)] if (n := ledger["tokens_repeated"]) else []),
        _line("  cut, alone or with their rows", ledger["tokens_cut"]),
        _line("  in training samples", train["tokens"]),
        _line("  in validation samples", validation["tokens"]),
    ]
    lines += [
        _line(label, ledger[key])
        for key, label in _LABELS.items()
        if ledger[key] or key not in _SHOWN_WHEN_ANY
    ]
    lines.append(f"{'':36}{'train':>14}{'validation':>14}")
    return "\n".join([*lines, *_format_parts(train, validation)])


def _format_parts(train: Mapping[str, Any], validation: Mapping[str, Any]) -> list[str]:
    lines = []
    rows = [
        ("samples", "samples", "{:,}"),
        ("tokens trained", "trained_tokens", "{:,}"),
        ("share of tokens trained", "trained_share", "{:.1%}"),
        ("packs", "packs", "{:,}"),
        ("fill of packs", "fill", "{:.1%}"),
    ]
    for label, key, form in rows:
        if key in train:
            values = [form.format(part[key]) if key in part else "" for part in (train, validation)]
            lines.append(f"{label:36}{values[0]:>14}{values[1]:>14}")
    for name in train["length"]:
        lines.append(f"{'length ' + name:36}{train['length'][name]:>14,}{validation['length'][name]:>14,}")
    return lines


def _line(label: str, number: int) -> str:
    return f"{label:36}{number:>14,}"
