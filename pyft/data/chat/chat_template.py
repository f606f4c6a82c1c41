"""A chat template bound to a tokenizer: renders conversations and prompts, and says what is learned in them.

What is learned comes from, in this order,

1. the template's `{% generation %}` marks;
2. for a template without marks, the prompts that chat would send, or the places of contents (masks.py).

A template for which neither gives a mask is refused, and so is one that writes no control token to end a
turn, or whose marks leave that token out, or cover more than answers.

A control token that a content, a call or a tool spells is text. Control tokens are the tokenizer's special
tokens and those that the template writes around answers. An answer may write the ones that are not special,
like the `<think>` of some models: the model has to write them, and the template may look for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pyft.data.chat.builtin import BUILTIN_TEMPLATES, BuiltinTemplate
from pyft.data.chat.capabilities import check_marks, find_written, places_reasoning, places_tools
from pyft.data.chat.completeness import check_kept, check_tool_results, count_shortened
from pyft.data.chat.masks import find_end_mark, find_prompt_ends, find_spans, trim_span
from pyft.data.chat.rendering import (
    MAX_PLACEHOLDERS,
    Frame,
    Rendered,
    Tools,
    as_dict,
    hold_back,
    placeholders,
    put_back,
)
from pyft.data.chat.sandbox import TemplateFailure, check_syntax, render_template
from pyft.data.rows.row import Message
from pyft.data.tokenizers.text import Span, encode_all, special_spellings
from pyft.errors import ConfigError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MOST_FRAMES = 256
_NAME_ONE = "(model.template): fix it, or name a built-in one (python -m pyft.data templates lists them)"
_WITH_TOOLS = ", ".join(name for name, builtin in BUILTIN_TEMPLATES.items() if builtin.supports_tools)


class ChatTemplate:
    """A template bound to one tokenizer's special tokens; it can be sent to another process."""

    def __init__(
        self,
        name: str,
        source: str,
        tokenizer: Any,
        end_mark: str | None,
        builtin: BuiltinTemplate | None = None,
    ) -> None:
        """Bind a template; ConfigError: it is none, fails on two questions and answers, or has no end mark.

        Args:
            name: What messages call it.
            source: Jinja text, as it goes into the saved tokenizer.
            tokenizer: A fast tokenizer, or a view of one.
            end_mark: The control token that ends an assistant turn; None to find it by rendering.
            builtin: Its entry in the table, if it has one.
        """
        self.name = name
        self.source = source
        self.has_marks = _GENERATION.search(source) is not None
        self.prompt_is_prefix = builtin is not None
        """Whether the prompt of every turn is the text before its span, whatever is said."""
        self._frames: dict[tuple[bool, tuple[str, ...]], Frame | None] = {}
        try:
            check_syntax(source)
        except TemplateFailure as error:
            raise ConfigError(f"{name} chat template cannot be used: {error} {_NAME_ONE}") from None
        special = tokenizer.special_tokens_map.items()
        self._special_variables = {key: value for key, value in special if isinstance(value, str)}
        self.end_mark = end_mark or self._find_end_mark(tokenizer)
        self.control_tokens = special_spellings(tokenizer) | {self.end_mark}
        if builtin is None:
            self.control_tokens |= self._find_control_tokens(tokenizer)
        else:
            self.control_tokens |= set(builtin.control_tokens)
            self.supports_tools = builtin.supports_tools
        self._set_controls()
        self._in_answers = _match_any(special_spellings(tokenizer) | {self.end_mark})

    @cached_property
    def supports_reasoning(self) -> bool:
        """Whether a `reasoning_content` has a place in it; the built-in ones have none."""
        if self.prompt_is_prefix:
            return False
        return places_reasoning(lambda messages: self._render_text(messages, (), False)[0])

    @cached_property
    def supports_tools(self) -> bool:
        """Whether tools, calls and what tools answer have a place in it."""
        return places_tools(lambda messages, tools: self._render_text(messages, tools, False)[0])

    def render(
        self, messages: Sequence[Message], *, tools: Tools = (), add_generation_prompt: bool = False
    ) -> Rendered:
        """Render a conversation, or with `add_generation_prompt` the prompt for its next assistant turn.

        `tools` are in OpenAI's form. A prompt has no spans and no ends of prompts. TemplateFailure is raised
        where the template refuses the conversation, or what is learned in it cannot be found.
        """
        uses_tools = bool(tools) or any(turn.tool_calls or turn.role == "tool" for turn in messages)
        if uses_tools and not self.supports_tools:
            raise TemplateFailure(f"it has no place for tools; {_WITH_TOOLS} have one")
        if any(turn.reasoning_content for turn in messages) and not self.supports_reasoning:
            raise TemplateFailure(
                "it has no place for reasoning_content; write that into the content as <think> .. </think>"
            )
        if self.prompt_is_prefix and not uses_tools:
            frame = self._get_frame(tuple(turn.role for turn in messages), add_generation_prompt)
            if frame is not None:
                filled = frame.fill([turn.content for turn in messages], self._controls)
                num_named = sum(bool(turn.name) for turn in messages)
                return replace(filled, turns_shortened=num_named) if num_named else filled
        held, held_tools, spellings = hold_back(messages, tools, self._controls, self._in_answers)
        text, spans = self._render_text(held, held_tools, add_generation_prompt)
        if add_generation_prompt:
            return put_back(text, (), (), spellings)
        if self.prompt_is_prefix:
            prompt_ends: Sequence[int | None] = [start for start, _ in spans]
        else:
            spans, prompt_ends = self._find_learned(held, held_tools, text, spans)
            check_tool_results(held, lambda turns: self._learned_text(turns, held_tools))
        whole = put_back(text, spans, prompt_ends, spellings)
        return replace(whole, turns_shortened=count_shortened(held, text))

    def encode_prompt(
        self, tokenizer: Any, messages: Iterable[Message | dict[str, Any]], tools: Tools = ()
    ) -> list[int]:
        """Return the ids that ask for the next assistant turn, with BOS where the template writes it.

        A message may be a Message or {"role": .., "content": ..}.
        """
        turns = [m if isinstance(m, Message) else Message(**m) for m in messages]
        try:
            rendered = self.render(turns, tools=tools, add_generation_prompt=True)
        except TemplateFailure as error:
            raise ConfigError(f"template {self.name} refuses the conversation: {error}: fix it") from None
        return encode_all(tokenizer, [rendered.spelled], self.control_tokens)[0].ids

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids at which an answer ends: the template's end mark, then the tokenizer's eos."""
        ids = [tokenizer.convert_tokens_to_ids(self.end_mark), tokenizer.eos_token_id]
        return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    def check_marks(self) -> None:
        """Refuse generation marks that do not enclose each answer and its end mark, or enclose more."""
        if not self.has_marks:
            return
        try:
            check_marks(lambda messages, prompt: self._render_text(messages, (), prompt), self.end_mark)
        except TemplateFailure as error:
            raise ConfigError(f"{self.name} chat template cannot be used: {error} {_NAME_ONE}") from None

    def _set_controls(self) -> None:
        self._controls = _match_any(self.control_tokens)

    def _get_frame(self, roles: tuple[str, ...], add_generation_prompt: bool) -> Frame | None:
        key = (add_generation_prompt, roles)
        if key not in self._frames:
            if len(roles) > MAX_PLACEHOLDERS:
                return None
            contents = placeholders(len(roles))
            messages = [Message(role, content) for role, content in zip(roles, contents, strict=True)]
            text, spans = self._render_text(messages, (), add_generation_prompt)
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            self._frames[key] = Frame.cut(text, () if add_generation_prompt else spans, len(roles))
        return self._frames[key]

    def _render_text(
        self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        return render_template(
            self.source,
            {
                **self._special_variables,
                "messages": [as_dict(message) for message in messages],
                "tools": list(tools) or None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def _find_learned(
        self, messages: Sequence[Message], tools: Tools, text: str, spans: list[Span]
    ) -> tuple[list[Span], list[int | None]]:
        def render(turns: Sequence[Message]) -> str:
            return self._render_text(turns, tools, False)[0]

        def render_prompt(turns: Sequence[Message]) -> str:
            return self._render_text(turns, tools, True)[0]

        check_kept(messages, text)
        prompt_ends = find_prompt_ends(messages, text, render_prompt)
        if not self.has_marks:
            spans = find_spans(
                messages, text, self.end_mark, prompt_ends, render=render, render_prompt=render_prompt
            )
            return spans, prompt_ends
        if len(spans) != len(prompt_ends):
            raise TemplateFailure(f"it marks {len(spans)} generations in {len(prompt_ends)} assistant turns")
        return [trim_span(text, span, self.end_mark) for span in spans], prompt_ends

    def _learned_text(self, messages: Sequence[Message], tools: Tools) -> str:
        text, spans = self._render_text(messages, tools, False)
        return "".join(text[start:end] for start, end in self._find_learned(messages, tools, text, spans)[0])

    def _find_end_mark(self, tokenizer: Any) -> str:
        tokens = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        try:
            mark = find_end_mark(lambda messages: self._render_text(messages, (), False)[0], tokens)
        except TemplateFailure as error:
            raise ConfigError(
                f"{self.name} chat template cannot render a question and an answer: {error} {_NAME_ONE}"
            ) from None
        if mark is None:
            raise ConfigError(
                f"{self.name} chat template writes no control token after an answer, so the model would "
                f"never learn to stop {_NAME_ONE}"
            )
        return mark

    def _find_control_tokens(self, tokenizer: Any) -> set[str]:
        """Find the tokens that somebody else's template writes, special or not."""
        self._set_controls()
        self._in_answers = self._controls
        try:
            return find_written(self.render, tokenizer.added_tokens_encoder)
        except TemplateFailure as error:
            raise ConfigError(f"{self.name} chat template cannot be used: {error} {_NAME_ONE}") from None


def _match_any(spellings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(re.escape(spelling) for spelling in longest_first))
