"""Chat templates: one renderer for training, chat, questions during training and the saved tokenizer.

A template is Jinja text: one of pyft's own, or the tokenizer's. It is bound to a tokenizer, whose BOS and eos it
writes and whose control tokens it needs. What is learned in a rendered conversation comes from, in this order,

1. the template's `{% generation %}` marks;
2. the prompt as chat would send it, where it is a prefix of the whole: from its end to the mark that ends the turn;
3. the place of each content, found by rendering with placeholders for contents.

A template for which none of these holds is refused. Contents that spell control tokens are rendered with
placeholders in their stead, so that what the template wrote and what a person wrote stay apart (see ids.py).
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyft.config import ConfigError
from pyft.data.builtin_templates import BUILTIN_TEMPLATES, BuiltinTemplate
from pyft.data.converters import Message
from pyft.data.ids import SpelledText, encode_all, special_spellings, spell_document
from pyft.data.sandbox import TemplateFailure, compile_template

__all__ = ["ChatTemplate", "Message", "Rendered", "TemplateFailure", "encode_text_prompt", "get_template"]

# Characters of a private plane stand for what must be told apart; real text has next to none of them.
_PLACEHOLDERS = range(0xF0000, 0xFFFFD)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation's text, the spans learned (one per assistant turn; none for a prompt), the spelled literals."""

    text: str
    spans: tuple[tuple[int, int], ...]
    literals: tuple[tuple[int, int], ...]

    @property
    def spelled(self) -> SpelledText:
        """The text as ids.py takes it."""
        return SpelledText(self.text, self.literals)


class ChatTemplate:
    """A template bound to one tokenizer's special tokens."""

    def __init__(self, name: str, source: str, tokenizer: Any, end_mark: str | None) -> None:
        """Bind a template.

        Args:
            name: What to call it in messages; built-in's name or "the tokenizer's own".
            source: Jinja text; this is what goes into the saved tokenizer.
            tokenizer: A fast tokenizer.
            end_mark: The control token that ends an assistant turn; None to find it by rendering.

        Raises:
            ConfigError: The source is no template, or no end mark is found.
        """
        self.name = name
        self.source = source
        self.has_marks = _GENERATION.search(source) is not None
        try:
            self._compiled = compile_template(source)
        except TemplateFailure as error:
            raise ConfigError(
                f"model.template: {name}: {error}: mend the tokenizer's chat template"
            ) from None
        special = tokenizer.special_tokens_map.items()
        self._special_variables = {key: value for key, value in special if isinstance(value, str)}
        self._added_tokens = tuple(sorted(tokenizer.added_tokens_encoder, key=len, reverse=True))
        self.end_mark = end_mark or self._find_end_mark()
        self.control_tokens = special_spellings(tokenizer) | {self.end_mark}
        if name in BUILTIN_TEMPLATES:
            self.control_tokens |= set(BUILTIN_TEMPLATES[name].control_tokens)
        spellings = sorted(self.control_tokens, key=len, reverse=True)
        self._controls = re.compile("|".join(re.escape(spelling) for spelling in spellings))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
        """Render a conversation, or the prompt that asks for its next assistant turn.

        Args:
            messages: The turns.
            add_generation_prompt: End with the head of an assistant turn; the spans are then left out.

        Returns:
            The text with its literals; without `add_generation_prompt` also the spans learned, in characters, one
            for each assistant turn.

        Raises:
            TemplateFailure: The template refuses the conversation, or what is learned in it cannot be found.
        """
        rendered, spans = self._render_plain(messages, add_generation_prompt)
        if add_generation_prompt:
            return rendered
        if self.has_marks:
            num_turns = sum(message.role == "assistant" for message in messages)
            if len(spans) != num_turns:
                raise TemplateFailure(f"it marks {len(spans)} generations in {num_turns} assistant turns")
        else:
            spans = self._find_spans(messages, rendered)
        return Rendered(rendered.text, tuple(self._trim(rendered, span) for span in spans), rendered.literals)

    def encode_prompt(self, tokenizer: Any, messages: Iterable[Message | dict[str, Any]]) -> list[int]:
        """Return the ids that ask for the next assistant turn.

        Args:
            tokenizer: The tokenizer this template was made for.
            messages: The turns so far, as Message or {"role": .., "content": ..}.

        Returns:
            Token ids, BOS included where the template writes it.

        Raises:
            ConfigError: The template refuses the conversation.
        """
        turns = [m if isinstance(m, Message) else Message(m["role"], m["content"]) for m in messages]
        try:
            rendered = self.render(turns, add_generation_prompt=True)
        except TemplateFailure as error:
            raise ConfigError(f"model.template: {self.name} refuses the conversation: {error}") from None
        return encode_all(tokenizer, [rendered.spelled], self.control_tokens)[0].ids

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids at which an answer ends: the template's end mark, then the tokenizer's eos.

        Args:
            tokenizer: The tokenizer this template was made for.

        Returns:
            One or two ids.
        """
        ids = [tokenizer.convert_tokens_to_ids(self.end_mark), tokenizer.eos_token_id]
        return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    def _render_plain(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[Rendered, list[tuple[int, int]]]:
        """Render with spelled control tokens held apart by placeholders, then put back."""
        marks: dict[str, str] = {}
        contents = [message.content for message in messages]
        if any(self._controls.search(content) for content in contents):
            unused = _unused_characters(contents)

            def hold(match: re.Match[str]) -> str:
                if match[0] not in marks:
                    marks[match[0]] = next(unused)
                return marks[match[0]]

            contents = [self._controls.sub(hold, content) for content in contents]
        text, spans = self._render_contents([m.role for m in messages], contents, add_generation_prompt)
        return _put_back(text, spans, {mark: spelling for spelling, mark in marks.items()})

    def _render_contents(
        self, roles: Sequence[str], contents: Sequence[str], add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        return self._compiled.render(
            {
                **self._special_variables,
                "messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _find_end_mark(self) -> str:
        """Render a small conversation with placeholders: the control token after the answer is the end mark."""
        answer = chr(_PLACEHOLDERS[1])
        question = chr(_PLACEHOLDERS[0])
        try:
            text, _ = self._render_contents(["user", "assistant"], [question, answer], False)
        except TemplateFailure as error:
            raise ConfigError(
                f"model.template: {self.name} cannot render a question and an answer: {error}: name a built-in one "
                f"({', '.join(BUILTIN_TEMPLATES)})"
            ) from None
        after = text.partition(answer)[2].lstrip()
        for token in self._added_tokens:
            if after.startswith(token):
                return token
        raise ConfigError(
            f"model.template: {self.name} writes no control token after an answer, so the model would never learn to "
            f"stop: name a built-in one ({', '.join(BUILTIN_TEMPLATES)})"
        )

    def _find_spans(self, messages: Sequence[Message], whole: Rendered) -> list[tuple[int, int]]:
        """Find what is learned in a template without marks."""
        spans = []
        places: list[tuple[int, int]] | None = None
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            try:
                prompt = self._render_plain(messages[:index], True)[0].text if index else ""
            except TemplateFailure:
                prompt = ""
            previous = spans[-1][1] if spans else 0
            if len(prompt) > previous and whole.text.startswith(prompt):
                start = len(prompt)
            else:
                places = places or self._find_contents(messages, whole.text)
                start = places[index][0]
            end = self._find_end(whole, start)
            if message.content.strip().rpartition("</think>")[2].strip() not in whole.text[start:end]:
                raise TemplateFailure(f"the answer of turn {index + 1} is not found in what it renders")
            spans.append((start, end))
        return spans

    def _find_end(self, whole: Rendered, start: int) -> int:
        literal_starts = {literal[0] for literal in whole.literals}
        position = whole.text.find(self.end_mark, start)
        while position in literal_starts:
            position = whole.text.find(self.end_mark, position + 1)
        if position < 0:
            raise TemplateFailure(f"no {self.end_mark} follows an answer")
        return position + len(self.end_mark)

    def _trim(self, whole: Rendered, span: tuple[int, int]) -> tuple[int, int]:
        """Leave out blanks that a template's marks enclose after the end mark: nothing after it is learned."""
        start, end = span
        position = whole.text.rfind(self.end_mark, start, end)
        after = position + len(self.end_mark)
        if position >= 0 and not whole.text[after:end].strip() and (position, after) not in whole.literals:
            end = after
        return start, end

    def _find_contents(self, messages: Sequence[Message], whole: str) -> list[tuple[int, int]]:
        """Place every content by rendering placeholders; only where putting them back gives the same text."""
        marks = _unused_characters([message.content for message in messages])
        keys = [next(marks) for _ in messages]
        frame, _ = self._render_contents([message.role for message in messages], keys, False)
        places: list[tuple[int, int]] = []
        built = ""
        for key, message in zip(keys, messages, strict=True):
            head, found, frame = frame.partition(key)
            content = (
                message.content
                if whole.startswith(built + head + message.content)
                else message.content.strip()
            )
            if not found or not whole.startswith(built + head + content):
                raise TemplateFailure("it rewrites contents, so what is learned cannot be told from the rest")
            places.append((len(built + head), len(built + head + content)))
            built += head + content
        if built + frame != whole:
            raise TemplateFailure("it rewrites contents, so what is learned cannot be told from the rest")
        return places


def _put_back(
    text: str, spans: list[tuple[int, int]], spellings: dict[str, str]
) -> tuple[Rendered, list[tuple[int, int]]]:
    """Replace each placeholder by what it stands for; spans move along, and the places become literals."""
    if not spellings:
        return Rendered(text, (), ()), spans
    pieces: list[str] = []
    literals: list[tuple[int, int]] = []
    marks: list[int] = []
    length = grown = 0
    grown_after = [0]
    for piece in re.split(f"([{''.join(spellings)}])", text):
        whole = spellings.get(piece, piece)
        if piece in spellings:
            literals.append((length, length + len(whole)))
            marks.append(length - grown)
            grown += len(whole) - 1
            grown_after.append(grown)
        pieces.append(whole)
        length += len(whole)

    def move(position: int) -> int:
        return position + grown_after[bisect_left(marks, position)]

    moved = [(move(start), move(end)) for start, end in spans]
    return Rendered("".join(pieces), (), tuple(literals)), moved


def _unused_characters(contents: Sequence[str]) -> Iterator[str]:
    present = set().union(*contents)
    return (chr(code) for code in _PLACEHOLDERS if chr(code) not in present)


def builtin_template(name: str) -> BuiltinTemplate:
    """Find a built-in template.

    Args:
        name: Its name.

    Returns:
        Its text and control tokens.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in BUILTIN_TEMPLATES:
        near = difflib.get_close_matches(name, BUILTIN_TEMPLATES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no template {name!r} (model.template): {hint}built in are {', '.join(BUILTIN_TEMPLATES)}"
        )
    return BUILTIN_TEMPLATES[name]


def get_template(name: str | None, tokenizer: Any) -> ChatTemplate:
    """Bind a template to a tokenizer.

    Args:
        name: A built-in's name, or None for the tokenizer's own.
        tokenizer: A fast tokenizer.

    Returns:
        The template; its `source` belongs into the saved tokenizer's `chat_template`.

    Raises:
        ConfigError: No such template, the tokenizer has none of its own, lacks an eos or the control tokens that
            the template writes, or no mask can be found for it.
    """
    builtin = None if name is None else builtin_template(name)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "model.tokenizer: the tokenizer has no eos token, so no answer could end: set eos_token in it"
        )
    if builtin is None or name is None:
        try:
            source = tokenizer.get_chat_template()
        except ValueError:
            raise ConfigError(
                f"model.template: the tokenizer brings no chat template of its own: name a built-in one "
                f"({', '.join(BUILTIN_TEMPLATES)})"
            ) from None
        return ChatTemplate("the tokenizer's own", source, tokenizer, None)
    missing = [token for token in builtin.control_tokens if token not in tokenizer.added_tokens_encoder]
    if missing:
        raise ConfigError(
            f"model.template: {name} needs the control tokens {', '.join(missing)}, which the tokenizer does not "
            "have: name the template the model was made with, or default, which is plain text"
        )
    return ChatTemplate(name, builtin.source, tokenizer, builtin.end_mark or tokenizer.eos_token)


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that ask a pretrained model to continue a text, as its training documents begin.

    Args:
        tokenizer: A fast tokenizer.
        text: The beginning of a document.

    Returns:
        Token ids, with BOS where the tokenizer puts one before every text.
    """
    return encode_all(tokenizer, [spell_document(tokenizer, text)], special_spellings(tokenizer))[0].ids
