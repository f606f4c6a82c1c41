"""Chat templates: one renderer for training, chat, questions during training and the saved tokenizer.

A template is Jinja text: one of pyft's own, or the tokenizer's. It is bound to a tokenizer, whose BOS and
eos it writes and whose control tokens it needs. What is learned in a rendered conversation comes from, in
this order,

1. the template's `{% generation %}` marks;
2. for a template without marks, the prompts that chat would send, or the places of contents (masks.py).

A template for which neither gives a mask is refused, and so is one that writes no control token to end a
turn.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pyft.config import ConfigError
from pyft.data.builtin_templates import BUILTIN_TEMPLATES, BuiltinTemplate
from pyft.data.converters import Message
from pyft.data.ids import document_start, encode_all, special_spellings, spell_document
from pyft.data.masks import find_end_mark, find_spans, trim_span
from pyft.data.rendering import Rendered, Span, hold_back, put_back
from pyft.data.sandbox import TemplateFailure, compile_template

__all__ = ["ChatTemplate", "Message", "Rendered", "TemplateFailure", "encode_text_prompt", "get_template"]

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


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
                f"{name} chat template cannot be used: {error} (model.template): name a built-in one "
                f"({', '.join(BUILTIN_TEMPLATES)})"
            ) from None
        special = tokenizer.special_tokens_map.items()
        self._special_variables = {key: value for key, value in special if isinstance(value, str)}
        self.end_mark = end_mark or self._find_end_mark(tokenizer)
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
            The text with its literals; without `add_generation_prompt` also the spans learned, in
            characters, one for each assistant turn.

        Raises:
            TemplateFailure: The template refuses the conversation, or what is learned in it cannot be found.
        """
        whole = self._render_held(messages, add_generation_prompt)
        if add_generation_prompt:
            return replace(whole, spans=())
        if not self.has_marks:
            spans = find_spans(
                messages,
                whole,
                self.end_mark,
                render=lambda roles, contents: self._render_contents(roles, contents, False)[0],
                render_prompt=lambda turns: self._render_held(turns, True).text,
            )
            return replace(whole, spans=tuple(spans))
        num_turns = sum(message.role == "assistant" for message in messages)
        if len(whole.spans) != num_turns:
            raise TemplateFailure(f"it marks {len(whole.spans)} generations in {num_turns} assistant turns")
        return replace(whole, spans=tuple(trim_span(whole, span, self.end_mark) for span in whole.spans))

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
            raise ConfigError(f"template {self.name} refuses the conversation: {error}: mend it") from None
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

    def _render_held(self, messages: Sequence[Message], add_generation_prompt: bool) -> Rendered:
        """Render with spelled control tokens held back, then put them in; spans are those of the marks."""
        contents, spellings = hold_back([message.content for message in messages], self._controls)
        roles = [message.role for message in messages]
        text, spans = self._render_contents(roles, contents, add_generation_prompt)
        return put_back(text, spans, spellings)

    def _render_contents(
        self, roles: Sequence[str], contents: Sequence[str], add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        return self._compiled.render(
            {
                **self._special_variables,
                "messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _find_end_mark(self, tokenizer: Any) -> str:
        tokens = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        builtins = ", ".join(BUILTIN_TEMPLATES)
        try:
            mark = find_end_mark(
                lambda roles, contents: self._render_contents(roles, contents, False)[0], tokens
            )
        except TemplateFailure as error:
            raise ConfigError(
                f"{self.name} chat template cannot render a question and an answer: {error} "
                "(model.template): "
                f"name a built-in one ({builtins})"
            ) from None
        if mark is None:
            raise ConfigError(
                f"{self.name} chat template writes no control token after an answer, so the model would "
                "never "
                f"learn to stop (model.template): name a built-in one ({builtins})"
            )
        return mark


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
            f"there is no template {name!r} (model.template): {hint}built in are "
            f"{', '.join(BUILTIN_TEMPLATES)}"
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
        ConfigError: No such template, the tokenizer has none of its own, lacks an eos or the control tokens
            that the template writes, or no mask can be found for it.
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
            f"model.template: {name} needs the control tokens {', '.join(missing)}, which the tokenizer "
            "does not have: name the template the model was made with, or default, which is plain text"
        )
    return ChatTemplate(name, builtin.source, tokenizer, builtin.end_mark or tokenizer.eos_token)


def trained_template(mode: str | None, name: str | None, tokenizer: Any) -> ChatTemplate | None:
    """Return the template a run was trained with.

    Args:
        mode: The run's mode; None when no run says so.
        name: A built-in's name, or None for the tokenizer's own.
        tokenizer: A fast tokenizer.

    Returns:
        The template; None for a model that was only pretrained, or has none.
    """
    if mode == "pretrain" or (name is None and not tokenizer.chat_template):
        return None
    return get_template(name, tokenizer)


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that ask a pretrained model to continue a text, as its training documents begin.

    Args:
        tokenizer: A fast tokenizer.
        text: The beginning of a document.

    Returns:
        Token ids, with BOS where the tokenizer puts one before every text.
    """
    spellings = special_spellings(tokenizer)
    spelled = spell_document(text, document_start(tokenizer), spellings)
    return encode_all(tokenizer, [spelled], spellings)[0].ids
