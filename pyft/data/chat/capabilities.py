"""What a foreign template can do, tried on conversations made of placeholders: whether its marks are right,
which tokens it writes itself, whether it has a place for tools and for thinking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from pyft.data.chat.masks import trim_span
from pyft.data.chat.rendering import Rendered, Tools, placeholders
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message
from pyft.data.tokenizers.text import Span

_TALK = [
    Message(role, content)
    for role, content in zip(("user", "assistant", "user", "assistant"), placeholders(4), strict=True)
]
_SYSTEM, _ARGUMENT, _RESULT, _PARAMETER = placeholders(8)[4:]
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {_PARAMETER: {"type": "string"}}},
    },
}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"x": _ARGUMENT}},
}
_TOOL_TALK = [
    _TALK[0],
    Message("assistant", "", tool_calls=(_CALL,)),
    Message("tool", _RESULT, name="look_up", tool_call_id="call00001"),
    _TALK[1],
]


def check_marks(render: Callable[[Sequence[Message], bool], tuple[str, list[Span]]], end_mark: str) -> None:
    """Refuse generation marks that do not enclose each answer and the mark that ends it, or enclose more.

    `render(messages, add_generation_prompt)` returns the text and what the template marks.
    """
    text, spans = render(_TALK, False)
    if len(spans) != 2:
        raise TemplateFailure(f"it marks {len(spans)} generations in 2 assistant turns")
    for turn, span in zip((1, 3), spans, strict=True):
        answer = _TALK[turn]
        start, end = trim_span(text, span, end_mark)
        # What the text has in common with the prompt is given to the model, not written by it.
        given = _count_equal(text, render(_TALK[:turn], True)[0])
        if answer.content not in text[start:end]:
            raise TemplateFailure("its generation marks leave the answer out: put them around it")
        if not text[start:end].endswith(end_mark):
            raise TemplateFailure(
                f"it leaves {end_mark} out of what is learned, so the model would never learn to stop: "
                "put it inside the generation marks"
            )
        others = (message for message in _TALK if message is not answer)
        if start < given or any(message.content in text[start:end] for message in others):
            raise TemplateFailure(
                "its generation marks cover more than the answer: begin them after the head of the turn"
            )


def _count_equal(one: str, other: str) -> int:
    """Count the characters that two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def find_written(render: Callable[[Sequence[Message]], Rendered], tokens: Iterable[str]) -> set[str]:
    """Find the tokens that a template writes around what is learned, but for blanks and words."""
    try:
        whole = render([Message("system", _SYSTEM), *_TALK])
    except TemplateFailure:
        whole = render(_TALK)
    starts = [0, *(end for _, end in whole.spans)]
    ends = [*(start for start, _ in whole.spans), len(whole.text)]
    around = "\n".join(whole.text[start:end] for start, end in zip(starts, ends, strict=True))
    return {token for token in tokens if token in around and not token.isspace() and not token.isalnum()}


def places_reasoning(render: Callable[[Sequence[Message]], str]) -> bool:
    """Return whether a template writes an answer's `reasoning_content`."""
    try:
        return _RESULT in render([_TALK[0], replace(_TALK[1], reasoning_content=_RESULT)])
    except TemplateFailure:
        return False


def places_tools(render: Callable[[Sequence[Message], Tools], str]) -> bool:
    """Return whether a template writes tools, calls and the results of tools."""
    try:
        text = render(_TOOL_TALK, [_TOOL])
    except TemplateFailure:
        return False
    return all(mark in text for mark in (_PARAMETER, _ARGUMENT, _RESULT))
