"""Remarks about prepared data: why nothing is left, why nothing would stop, what the ledger shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyft.config.schema import DataSource
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.prepared.counts import Counts


def describe_nothing_left(sources: Sequence[DataSource], counts: Counts, max_length: int | None) -> str:
    """Say why no row is left to train on, and how to fix it."""
    names = ", ".join(source.path for source in sources)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.dropped.items() if count)
    fix = "give at least one row with an answer that is trained"
    if counts.errors:
        fix = f"fix them, first {counts.errors[0]}"
    if max_length and counts.longest_dropped > max_length:
        fix = f"raise data.max_length (now {max_length}; the longest row has {counts.longest_dropped} tokens)"
    return f"{names}: none of the {counts.rows_read} rows is left to train on (dropped: {reasons}): {fix}"


def describe_no_stop(template: ChatTemplate, num_truncated: int, *, is_tokenized: bool) -> str:
    """Say why nothing would teach the model to stop, and how to fix it."""
    if num_truncated:
        return (
            f"all {num_truncated} rows that are left lost their end, so the model would never learn to stop "
            "(data.overlong, data.max_length): raise max_length, write overlong: drop, or write "
            "data.train_on_eot: false if that is intended"
        )
    if is_tokenized:
        return (
            f"no row learns {template.end_mark}, which ends an answer in template {template.name}, so the "
            "model would never stop (data.train): put its id into input_ids and labels at the end of each "
            "answer, or write data.train_on_eot: false if that is intended"
        )
    return (
        f"template {template.name} leaves {template.end_mark} out of what is learned, so the model would "
        "never stop (model.template): put it inside {% generation %}, name a built-in template, or write "
        "data.train_on_eot: false if that is intended"
    )


def describe_ledger(ledger: dict[str, Any], val_size: float) -> list[str]:
    """Put into words what a reader of the ledger should not miss."""
    notes = []
    if val_size and not ledger["validation"]["rows"]:
        notes.append("no validation: there is a single row")
    if ledger["duplicates"]:
        notes.append(
            f"{ledger['duplicates']} validation samples are also training samples: their loss says "
            "nothing about new text"
        )
    if ledger["rejected_unused"]:
        notes.append(
            f"{ledger['rejected_unused']} rejected answers are not learned: this mode learns the chosen ones"
        )
    if ledger["turns_shortened"]:
        notes.append(
            f"{ledger['turns_shortened']} turns lose their thinking or their speaker's name: the chat "
            "template does not write it there"
        )
    if ledger["prompt_differs"]:
        notes.append(
            f"{ledger['prompt_differs']} rows begin with other tokens than chat would send: the tokenizer "
            "joins the prompt's last character to the answer's first, or the template opens an answer in "
            "one way in a prompt and in another in a conversation"
        )
    return notes
