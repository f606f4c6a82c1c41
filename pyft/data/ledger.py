"""Count what becomes of every row and token; the table printed before training.

    rows_read      = sum of dropped.<reason> + train.rows + validation.rows
    tokens_encoded = tokens_cut + train.tokens + validation.tokens

These sums are checked whenever a ledger is made. `trained_tokens` are labels that are not -100;
`target_tokens` those of them that have a token before them in their sample, which is what the loss is
divided by. Rows in which nothing is learned are dropped before they are encoded, so their tokens are in no
count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyft.data.collate import IGNORED
from pyft.data.encode import EncodedRow, Sample

DROP_REASONS = ("nooutput", "no_trained_tokens", "overlong")
_PERCENTILES = (50, 90, 99)


@dataclass
class Counts:
    """Running counts while rows are read; `longest_dropped` is in tokens."""

    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    turns_cut: int = 0
    rows_split: int = 0
    prompt_differs: int = 0
    tokens_encoded: int = 0
    tokens_cut: int = 0
    longest_dropped: int = 0


def make_ledger(
    counts: Counts,
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    *,
    max_length: int | None,
    train_packs: Sequence[Sequence[Sample]] | None,
    validation_packs: Sequence[Sequence[Sample]] | None,
) -> dict[str, Any]:
    """Put the counts together and check that they agree.

    RuntimeError is raised further down where a row or token is lost or counted twice.

    Args:
        counts: What was counted while reading.
        train: Rows kept for training.
        validation: Rows kept for validation.
        max_length: Tokens a pack may hold.
        train_packs: The packs, None without packing.
        validation_packs: The same for validation.

    Returns:
        Nested numbers.
    """
    ledger = {
        "rows_read": counts.rows_read,
        "dropped": dict(counts.dropped),
        "turns_cut": counts.turns_cut,
        "rows_split": counts.rows_split,
        "prompt_differs": counts.prompt_differs,
        "tokens_encoded": counts.tokens_encoded,
        "tokens_cut": counts.tokens_cut,
        "train": _describe_part(train, max_length, train_packs),
        "validation": _describe_part(validation, max_length, validation_packs),
        "duplicates": _count_duplicates(train, validation),
    }
    check_ledger(ledger)
    return ledger


def check_ledger(ledger: Mapping[str, Any]) -> None:
    """Check the sums.

    Args:
        ledger: What make_ledger made.

    Raises:
        RuntimeError: A sum does not agree.
    """
    train, validation = ledger["train"], ledger["validation"]
    rows = sum(ledger["dropped"].values()) + train["rows"] + validation["rows"]
    tokens = ledger["tokens_cut"] + train["tokens"] + validation["tokens"]
    if rows != ledger["rows_read"] or tokens != ledger["tokens_encoded"]:
        raise RuntimeError(
            f"ledger: {ledger['rows_read']} rows read but {rows} accounted for, "
            f"{ledger['tokens_encoded']} tokens "
            f"encoded but {tokens} accounted for"
        )


def _describe_part(
    rows: Sequence[EncodedRow], max_length: int | None, packs: Sequence[Sequence[Sample]] | None
) -> dict[str, Any]:
    samples = [sample for row in rows for sample in row.samples]
    lengths = sorted(len(sample.input_ids) for sample in samples)
    tokens = sum(lengths)
    trained = sum(sample.num_trained for sample in samples)
    part: dict[str, Any] = {
        "rows": len(rows),
        "samples": len(samples),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": round(trained / tokens, 4) if tokens else 0.0,
        "target_tokens": trained - sum(sample.labels[0] != IGNORED for sample in samples),
        "length": {f"p{p}": _percentile(lengths, p) for p in _PERCENTILES}
        | {"max": lengths[-1] if lengths else 0},
    }
    if packs is not None and max_length is not None:
        part["packs"] = len(packs)
        part["fill"] = round(tokens / (len(packs) * max_length), 4) if packs else 0.0
    return part


def _percentile(ascending: Sequence[int], percent: int) -> int:
    """The smallest length that at least `percent` of samples do not exceed."""
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)] if ascending else 0


def _count_duplicates(train: Sequence[EncodedRow], validation: Sequence[EncodedRow]) -> int:
    """Validation samples that are also, token for token, training samples."""
    seen = {tuple(sample.input_ids) for row in train for sample in row.samples}
    return sum(tuple(sample.input_ids) in seen for row in validation for sample in row.samples)


def format_ledger(ledger: Mapping[str, Any]) -> str:
    """Write the ledger as a table.

    Args:
        ledger: What make_ledger made.

    Returns:
        Lines of text, without the last line end.
    """
    train, validation = ledger["train"], ledger["validation"]
    lines = [_line("rows read", ledger["rows_read"])]
    lines += [_line(f"  dropped: {reason}", count) for reason, count in ledger["dropped"].items()]
    lines += [_line("  kept for training", train["rows"]), _line("  kept for validation", validation["rows"])]
    lines += [
        _line("tokens encoded", ledger["tokens_encoded"]),
        _line("  cut with dropped rows", ledger["tokens_cut"]),
        _line("  in training samples", train["tokens"]),
        _line("  in validation samples", validation["tokens"]),
        _line("turns cut (after the last answer)", ledger["turns_cut"]),
        _line("rows split into windows", ledger["rows_split"]),
        _line("rows whose prompt reads differently", ledger["prompt_differs"]),
        _line("validation samples also trained on", ledger["duplicates"]),
        f"{'':36}{'train':>14}{'validation':>14}",
    ]
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
    return "\n".join(lines)


def _line(label: str, number: int) -> str:
    return f"{label:36}{number:>14,}"
