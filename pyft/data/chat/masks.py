"""Find what is learned in a rendered conversation, for templates that do not mark it.

1. If the prompt that chat would send is a prefix of the whole, what follows is learned, up to the end mark.
   So a template that opens every answer with an empty thinking block has that block learned, as the model
   must write it.
2. Else, as in templates that rewrite earlier turns, the place of each content, found by rendering with
   placeholders instead of the contents; only if putting the contents back gives the same text, to the last
   character. A thinking part, `<think> .. </think>`, may be dropped: learned is what is really rendered.

If neither holds, the conversation is refused: a wrong mask is worse than none. All texts here hold
placeholders for spelled control tokens (see rendering.py), so a control token in them is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pyft.data.chat.rendering import unused_characters
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message
from pyft.data.tokenizers.text import Span

Render = Callable[[Sequence[Message]], str]
"""Messages -> the text of a conversation, or of a prompt."""

_REWRITES = "it rewrites contents, so what is learned cannot be found"


def find_end_mark(render: Render, tokens: Sequence[str]) -> str | None:
    """Find the control token that a template writes after an answer, among tokens sorted longest first."""
    unused = unused_characters([])
    question, answer = next(unused), next(unused)
    after = render([Message("user", question), Message("assistant", answer)]).partition(answer)[2].lstrip()
    return next((token for token in tokens if after.startswith(token)), None)


def find_prompt_ends(messages: Sequence[Message], text: str, render_prompt: Render) -> list[int | None]:
    """Find where the prompt of each assistant turn ends in the text.

    None where it is not a prefix of the text, or cannot be rendered: some templates refuse a partial
    conversation.
    """
    ends: list[int | None] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = _try(render_prompt, messages[:index])
            ends.append(len(prompt) if prompt is not None and text.startswith(prompt) else None)
    return ends


def find_spans(
    messages: Sequence[Message],
    text: str,
    end_mark: str,
    prompt_ends: Sequence[int | None],
    *,
    render: Render,
    render_prompt: Render,
) -> list[Span]:
    """Find the span of characters of each assistant turn: its content and the mark that ends it."""
    spans: list[Span] = []
    places: _Places | None = None
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index, prompt_end in zip(turns, prompt_ends, strict=True):
        previous = spans[-1][1] if spans else 0
        if prompt_end is not None and prompt_end > previous:
            start = prompt_end
        else:
            places = places or _Places(messages, text, render)
            start = places.find_start(index, _find_head(messages[:index], render, render_prompt))
        position = text.find(end_mark, start)
        if position < 0 or start < previous:
            raise TemplateFailure(f"no {end_mark} follows the answer of turn {index + 1}")
        end = position + len(end_mark)
        _check_answer(messages[index], text[start:end], index)
        if messages[index].tool_calls:
            whole_turn = _try(render, messages[: index + 1])
            if whole_turn is not None and text.startswith(whole_turn) and end > len(whole_turn):
                raise TemplateFailure(f"no {end_mark} follows the call of turn {index + 1}")
        spans.append((start, end))
    return spans


def trim_span(text: str, span: Span, end_mark: str) -> Span:
    """Cut off blanks that a template's marks enclose after the end mark: nothing after it is learned."""
    start, end = span
    position = text.rfind(end_mark, start, end)
    after = position + len(end_mark)
    return (start, after) if position >= 0 and not text[after:end].strip() else span


def _try(render: Render, messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except TemplateFailure:
        return None


def _find_head(before: Sequence[Message], render: Render, render_prompt: Render) -> str:
    """Return what the template writes to ask for an answer; "" if that cannot be told."""
    prompt, history = _try(render_prompt, before), _try(render, before)
    return prompt[len(history) :] if prompt and history and prompt.startswith(history) else ""


def _check_answer(message: Message, learned: str, index: int) -> None:
    # What a template may leave out of an answer is its thinking.
    said = [message.content.rpartition("</think>")[2].strip()]
    said += [call.get("function", call).get("name", "") for call in message.tool_calls]
    if not all(text in learned for text in said):
        raise TemplateFailure(f"the answer of turn {index + 1} is not found in what it renders")


class _Places:
    """Where each content lies in a text."""

    def __init__(self, messages: Sequence[Message], text: str, render: Render) -> None:
        self._text = text
        unused = unused_characters([text, *(message.content for message in messages)])
        parts: dict[str, str] = {}
        owners: dict[str, int] = {}
        blanked = []
        for index, message in enumerate(messages):
            content, keys = _blank(message, unused)
            blanked.append(replace(message, content=content))
            parts |= keys
            owners |= dict.fromkeys(keys, index)
        self._spans: list[Span] = []
        self._leads: list[str] = []
        """The blanks that each part begins with."""
        self._of_message: dict[int, list[int]] = {}
        self._put_back(render(blanked), parts, owners)

    def _put_back(self, frame: str, parts: dict[str, str], owners: dict[str, int]) -> None:
        built = ""
        pattern = f"([{''.join(parts)}])" if parts else "(?!)()"
        for piece in re.split(pattern, frame):
            core = piece
            if piece in parts:
                part = parts[piece]
                core = part.strip()
                self._of_message.setdefault(owners[piece], []).append(len(self._spans))
                self._spans.append((len(built), len(built) + len(core)))
                self._leads.append(part[: len(part) - len(part.lstrip())])
            built += core
        if built != self._text:
            raise TemplateFailure(_REWRITES)

    def find_start(self, index: int, head: str) -> int:
        """Find the first character that the model wrote in a turn: after its head, else its content."""
        own = self._of_message.get(index)
        if own:
            first = own[0]
            gap_start = self._spans[first - 1][1] if first else 0
            place = self._text.rfind(head, gap_start, self._spans[first][0]) if head else -1
            return place + len(head) if place >= 0 else self._with_lead(first)
        # Nothing but calls in it: right after the contents before it the template writes its head.
        earlier = [place for before in range(index) for place in self._of_message.get(before, [])]
        gap_start = self._spans[max(earlier)][1] if earlier else 0
        place = self._text.find(head, gap_start) if head else -1
        if place < 0:
            raise TemplateFailure(f"the answer of turn {index + 1} is not found in what it renders")
        return place + len(head)

    def _with_lead(self, place: int) -> int:
        """Return the start of a part, with the blanks before it if the template keeps them."""
        start, lead = self._spans[place][0], self._leads[place]
        return start - len(lead) if self._text.endswith(lead, 0, start) else start


def _blank(message: Message, unused: Iterator[str]) -> tuple[str, dict[str, str]]:
    """Put placeholders into a content, but for blanks at its ends and the tags of a thinking part.

    Returns what is to be rendered, and which part of the content each placeholder stands for.
    """
    keys: dict[str, str] = {}

    def blank(text: str) -> str:
        core = text.strip()
        if not core:
            return text
        key = next(unused)
        keys[key] = text
        return text.replace(core, key, 1)

    before, closing, after = message.content.rpartition("</think>")
    if message.role != "assistant" or not closing:
        return blank(message.content), keys
    lead, opening, thought = before.partition("<think>")
    return blank(lead) + opening + blank(thought) + closing + blank(after), keys
