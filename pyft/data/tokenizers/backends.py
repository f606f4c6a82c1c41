"""Copies of a tokenizer's backend, each with one difference; made once per tokenizer.

encoding_backend    offsets that cover every character, blanks too
plain_copy          knows no control tokens: for a stretch of text between two of them
continuing_copy     the same for a text that continues another: puts nothing before it
"""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

_Key = tuple[frozenset[str] | None, str, int]
_copies: WeakKeyDictionary[Any, dict[_Key, Tokenizer]] = WeakKeyDictionary()


def encoding_backend(tokenizer: Any) -> Tokenizer:
    """Return the backend for whole texts: its own without limits, a copy if its offsets skip blanks."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    rules = backend.post_processor
    if rules is None or b'"trim_offsets":true' not in rules.__getstate__():
        return backend
    return _copy(tokenizer, None, "whole")


def plain_copy(tokenizer: Any, control_tokens: frozenset[str], *, at_start: bool) -> Tokenizer:
    """Return a copy that reads control tokens as text; some put a blank before a text that is `at_start`."""
    return _copy(tokenizer, control_tokens, "start" if at_start else "inside")


def continuing_copy(tokenizer: Any, control_tokens: frozenset[str]) -> Tokenizer:
    """Return a copy that reads control tokens as text and puts no blank before a text."""
    return _copy(tokenizer, control_tokens, "continuing")


def _copy(tokenizer: Any, control_tokens: frozenset[str] | None, place: str) -> Tokenizer:
    copies = _copies.setdefault(tokenizer, {})
    key = (control_tokens, place, len(tokenizer))
    if key not in copies:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = description["post_processor"] = None
        if control_tokens is not None:
            for token in description["added_tokens"]:
                token["special"] = token["special"] or token["content"] in control_tokens
        _drop_prefixes(description["normalizer"], place)
        _drop_prefixes(description["pre_tokenizer"], place)
        copies[key] = Tokenizer.from_str(json.dumps(description))
        copies[key].encode_special_tokens = control_tokens is not None
    return copies[key]


def _drop_prefixes(rule: Any, place: str) -> None:
    """Change a rule so that no blank appears that the whole text does not get at that place."""
    if isinstance(rule, list):
        for inner in rule:
            _drop_prefixes(inner, place)
    if not isinstance(rule, dict) or place in ("whole", "start"):
        return
    if rule.get("prepend_scheme") == "first" or (place == "continuing" and "prepend_scheme" in rule):
        rule["prepend_scheme"] = "never"
    if place == "continuing":
        if "add_prefix_space" in rule:
            rule["add_prefix_space"] = False
        if rule.get("type") == "Prepend":
            rule["prepend"] = ""
    for inner in rule.values():
        _drop_prefixes(inner, place)
