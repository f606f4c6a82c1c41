"""Rows to prepare: conversations of made-up words, the same for the same seed, as long as instruction data's.

Words follow a power law, as those of a language do, so that a tokenizer trained on them splits the rare ones.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

Turns = list[dict[str, str]]

_STARTS = ("b", "br", "c", "d", "f", "g", "gr", "h", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "th", "w")
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
_ENDS = ("", "", "l", "n", "nd", "r", "s", "st", "t", "ng")
_NUM_WORDS = 20_000
# Middle and spread of a log-normal distribution, in words.
_QUESTION, _INPUT, _ANSWER = (11, 0.6), (14, 0.8), (55, 1.0)


def make_rows(num_rows: int, num_turns: int, seed: int = 0) -> list[Turns]:
    """Make conversations of `num_turns` questions and answers each."""
    rng = random.Random(seed)
    syllables = ["".join(parts) for parts in itertools.product(_STARTS, _MIDDLES, _ENDS)]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))) for _ in range(_NUM_WORDS)]
    # Zipf's law, summed up.
    weights = list(itertools.accumulate(1.0 / (rank + 3) for rank in range(_NUM_WORDS)))

    def prose(middle: float, spread: float) -> str:
        count = max(1, min(900, round(middle * rng.lognormvariate(0.0, spread))))
        chosen = rng.choices(words, cum_weights=weights, k=count)
        for index in range(0, count, rng.randint(6, 14)):
            chosen[index] = chosen[index].capitalize()
            if index:
                chosen[index - 1] += rng.choice((".", ".", ",", ":", "!", ".\n\n", ".\n1."))
        return " ".join(chosen).replace("\n ", "\n") + "."

    rows = []
    for _ in range(num_rows):
        turns = []
        for _ in range(num_turns):
            question = prose(*_QUESTION) + ("\n" + prose(*_INPUT) if rng.random() < 0.4 else "")
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": prose(*_ANSWER)})
        rows.append(turns)
    return rows


def read_rows(path: Path) -> list[Turns]:
    """Read real rows: a .json array or .jsonl of {"instruction", "input"?, "output"} or {"messages"}."""
    text = path.read_text(encoding="utf-8")
    whole = path.suffix == ".json"
    records: list[dict[str, Any]] = json.loads(text) if whole else [json.loads(t) for t in text.splitlines()]
    rows = []
    for record in records:
        if "messages" in record:
            rows.append([{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]])
        elif record["output"].strip() != "<nooutput>":
            question = "\n".join(part for part in (record["instruction"], record.get("input")) if part)
            answer = {"role": "assistant", "content": record["output"]}
            rows.append([{"role": "user", "content": question}, answer])
    return rows
