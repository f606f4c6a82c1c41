"""Whether a rendered conversation says what its messages say: nothing is lost, nothing else is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pyft.data.chat.rendering import unused_characters
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message


def check_tool_results(messages: Sequence[Message], find_learned: Callable[[Sequence[Message]], str]) -> None:
    """Refuse a template that writes the results of tools into the assistant's turn.

    `find_learned` renders a conversation and returns what is learned of it.
    """
    results = {index: turn.content for index, turn in enumerate(messages) if turn.role == "tool"}
    if not any(result.strip() for result in results.values()):
        return
    learned = find_learned(messages)
    if not any(result.strip() and result.strip() in learned for result in results.values()):
        return
    # An answer may quote a result; a placeholder it cannot.
    unused = unused_characters([turn.content for turn in messages])
    marks = {index: next(unused) for index in results}
    marked = [replace(turn, content=marks.get(index, turn.content)) for index, turn in enumerate(messages)]
    learned = find_learned(marked)
    for index, mark in marks.items():
        if mark in learned:
            raise TemplateFailure(
                f"it writes the tool text of turn {index + 1} into the assistant's turn, where it would be "
                "learned"
            )


def check_kept(messages: Sequence[Message], text: str) -> None:
    """Refuse a template that leaves out what somebody said."""
    for index, message in enumerate(messages):
        said = message.content.strip()
        if message.role == "assistant" or not said:
            continue
        # Others may say the same, or have it in what they say.
        others = (turn for turn in messages if turn.role != "assistant")
        if text.count(said) < sum(turn.content.count(said) for turn in others):
            raise TemplateFailure(f"it leaves out the {message.role} text of turn {index + 1}")


def count_shortened(messages: Sequence[Message], text: str) -> int:
    """Count the turns whose thinking or speaker's name is not in the text.

    The name of a tool is not missed: the call before it has it.
    """
    having: dict[str, list[int]] = {}
    for index, message in enumerate(messages):
        for part in _list_omissible(message):
            having.setdefault(part, []).append(index)
    shortened: set[int] = set()
    for part, turns in having.items():
        # Others may say the same, or have it in what they say; earlier turns are those that lose it.
        num_said = sum(
            said.count(part)
            for message in messages
            for said in (message.content, message.reasoning_content or "", message.name or "")
        )
        shortened.update(turns[: max(0, num_said - text.count(part))])
    return len(shortened)


def _list_omissible(message: Message) -> list[str]:
    parts = [message.name] if message.name and message.role != "tool" else []
    if message.role == "assistant":
        lead, _, thought = message.content.rpartition("</think>")[0].partition("<think>")
        parts += [part.strip() for part in (lead, thought, message.reasoning_content or "")]
    return [part for part in parts if part]
