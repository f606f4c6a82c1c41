"""Find what is learned in a rendered conversation, for templates that do not mark it.

1. The prompt as chat would send it, where it is a prefix of the whole: learned is what follows, up to the
  end mark.
   So a template that opens every answer with an empty thinking block has that block learned, as the model
   must write it.
2. Else the place of each content, found by rendering placeholders for contents; only where putting the
  contents back
   gives the same text, to the last character.

Where neither holds the conversation is refused: a wrong mask is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyft.data.converters import Message
from pyft.data.rendering import Rendered, Span, unused_characters
from pyft.data.sandbox import TemplateFailure

# (roles, contents) -> text
RenderContents = Callable[[Sequence[str], Sequence[str]], str]
# messages -> prompt
RenderPrompt = Callable[[Sequence[Message]], str]

_REWRITES = "it rewrites contents, so what is learned cannot be told from the rest"


def find_end_mark(render: RenderContents, tokens: Sequence[str]) -> str | None:
    """Find the control token that a template writes after an answer.

    TemplateFailure is raised further down where the template cannot render a question and an answer.

    Args:
        render: Renders a conversation.
        tokens: The tokenizer's added tokens, longest first.

    Returns:
        The token, or None where there is none.
    """
    unused = unused_characters([])
    question, answer = next(unused), next(unused)
    after = render(["user", "assistant"], [question, answer]).partition(answer)[2].lstrip()
    return next((token for token in tokens if after.startswith(token)), None)


def find_spans(
    messages: Sequence[Message],
    whole: Rendered,
    end_mark: str,
    *,
    render: RenderContents,
    render_prompt: RenderPrompt,
) -> list[Span]:
    """Find the span of each assistant turn: its content and the mark that ends it.

    Args:
        messages: The conversation.
        whole: The conversation, rendered.
        end_mark: What ends a turn.
        render: Renders a conversation with other contents.
        render_prompt: Renders the prompt for the next assistant turn.

    Returns:
        Spans of characters, in order.

    Raises:
        TemplateFailure: They cannot be found.
    """
    spans: list[Span] = []
    places: list[Span] | None = None
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = _try_prompt(messages[:index], render_prompt)
        previous = spans[-1][1] if spans else 0
        if len(prompt) > previous and whole.text.startswith(prompt):
            start = len(prompt)
        else:
            places = places or _find_contents(messages, whole.text, render)
            start = places[index][0]
        end = _find_end(whole, start, end_mark)
        # What a template may leave out of an answer is its thinking.
        said = message.content.rpartition("</think>")[2].strip()
        if said not in whole.text[start:end]:
            raise TemplateFailure(f"the answer of turn {index + 1} is not found in what it renders")
        spans.append((start, end))
    return spans


def trim_span(whole: Rendered, span: Span, end_mark: str) -> Span:
    """Leave out blanks that a template's marks enclose after the end mark: nothing after it is learned.

    Args:
        whole: The conversation, rendered.
        span: What the marks enclose.
        end_mark: What ends a turn.

    Returns:
        The span learned.
    """
    start, end = span
    position = whole.text.rfind(end_mark, start, end)
    after = position + len(end_mark)
    if position >= 0 and not whole.text[after:end].strip() and (position, after) not in whole.literals:
        return start, after
    return span


def _try_prompt(messages: Sequence[Message], render_prompt: RenderPrompt) -> str:
    """Some templates refuse an empty or a partial conversation: then there is no prompt to compare with."""
    try:
        return render_prompt(messages)
    except TemplateFailure:
        return ""


def _find_end(whole: Rendered, start: int, end_mark: str) -> int:
    literal_starts = {literal[0] for literal in whole.literals}
    position = whole.text.find(end_mark, start)
    while position in literal_starts:
        position = whole.text.find(end_mark, position + 1)
    if position < 0:
        raise TemplateFailure(f"no {end_mark} follows an answer")
    return position + len(end_mark)


def _find_contents(messages: Sequence[Message], whole: str, render: RenderContents) -> list[Span]:
    unused = unused_characters([message.content for message in messages])
    keys = [next(unused) for _ in messages]
    frame = render([message.role for message in messages], keys)
    places: list[Span] = []
    built = ""
    for key, message in zip(keys, messages, strict=True):
        head, found, frame = frame.partition(key)
        built += head
        content = next(
            (text for text in (message.content, message.content.strip()) if whole.startswith(built + text)),
            None,
        )
        if not found or content is None:
            raise TemplateFailure(_REWRITES)
        places.append((len(built), len(built) + len(content)))
        built += content
    if built + frame != whole:
        raise TemplateFailure(_REWRITES)
    return places
