"""Ready-made field maps: the keys of well-known data sets, and the system text to learn them under.

A map is a format, the names its keys have in the file, and a system text for rows without one. What the
recipe says about a source overrides its map.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from pyft.data.rows.registry import MARKED_TEXT
from pyft.errors import ConfigError

_INSTRUCTED = "You are given a task, at times with further input. Answer with what fulfils it."
_INSTRUCTED_ZH = "下面会给出一项任务，有时附有补充内容。请给出完成该任务的回答。"
_PROGRAMMER = (
    "You are an experienced programmer. Write correct, readable code for what is asked, and explain it where "
    "that helps."
)
_TITLE_WRITER = "You know the scientific literature well. Give the paper with this abstract a fitting title."
_COLOURIST = "You know colours well. Answer the description of a colour with its hexadecimal code, #rrggbb."
_LAWYER_ZH = "你是一名熟悉中国法律的律师。请依据法律条文，准确、清楚地回答咨询者的问题。"
_DOCTOR_ZH = "你是一名经验丰富的医生。请根据患者的描述，给出专业、谨慎而易懂的回答。"
_SQL_WRITER = (
    "You write SQL. You are given the tables of a database and a question about them; answer with the query "
    "that answers the question."
)


@dataclass(frozen=True)
class FieldMap:
    """Format, {the format's key: the file's key}, and system text."""

    format: str
    columns: dict[str, str] = field(default_factory=dict)
    system: str | None = None


FIELD_MAPS: dict[str, FieldMap] = {
    "alpaca": FieldMap("alpaca", system=_INSTRUCTED),
    "alpaca_zh": FieldMap(
        "alpaca",
        {"instruction": "instruction_zh", "input": "input_zh", "output": "output_zh"},
        _INSTRUCTED_ZH,
    ),
    "code_alpaca": FieldMap("prompt", system=_PROGRAMMER),
    "arxiv": FieldMap("query", {"query": "abstract", "response": "title"}, _TITLE_WRITER),
    "colors": FieldMap("query", {"query": "description", "response": "color"}, _COLOURIST),
    "crime_kg_assitant": FieldMap("query", {"query": "input", "response": "output"}, _LAWYER_ZH),
    "law_reference": FieldMap("query", {"query": "question", "response": "answer"}, _LAWYER_ZH),
    "medical": FieldMap("alpaca", system=_DOCTOR_ZH),
    "sql": FieldMap(
        "alpaca", {"instruction": "context", "input": "question", "output": "answer"}, _SQL_WRITER
    ),
    "tiny_codes": FieldMap("query", {"query": "prompt"}, _PROGRAMMER),
    "stack_exchange": FieldMap("query", {"query": "question", "response": "response_j"}),
    "openorca": FieldMap("query", {"query": "question", "system": "system_prompt"}),
    "oasst1": FieldMap(MARKED_TEXT),
    "wizardlm": FieldMap("sharegpt"),
    "openai": FieldMap("messages"),
}


def get_map(name: str) -> tuple[str, dict[str, str], str | None]:
    """Look up a map: its format, columns and system text."""
    found = FIELD_MAPS.get(name)
    if found is None:
        nearest = difflib.get_close_matches(name, FIELD_MAPS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? There are" if nearest else "write one of"
        raise ConfigError(
            f"there is no field map {name!r} (data.train[].map): {hint} {', '.join(FIELD_MAPS)}"
        )
    return found.format, dict(found.columns), found.system
