"""Ids and labels of conversations, grown together.

    conversation   BOS head question .. head [answer end-mark] \\n head question .. head [answer end-mark]
    labels         -100 but in [ ]: contents of trained assistant turns and the marks that end them

The rendered text is tokenised once, as inference does. For each trained turn the ids of the prompt as chat
would send it must be the first of the row's; if they are not (a tokenizer that joins the last character
of the prompt to the first of the answer) the row is kept and counted, its ids are still those of the whole
text, and no token that holds a character from outside the answer is learned.

Turns after the last trained one are cut. train_on: last learns only that one; train_on: all every token of
the whole conversation, whatever its turns say. train_on_eot: false leaves the marks out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.rendering import Tools
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.encode.length import WholeRow, fit
from pyft.data.encode.prompt_check import PromptCheck
from pyft.data.encode.sample import IGNORED, EncodedRow, EncodeOptions, Sample
from pyft.data.rows.row import Message, Row
from pyft.data.tokenizers.text import Encoded, Span, SpelledText, encode_all


@dataclass(frozen=True)
class _RenderedRow:
    """One rendered row: the whole, and for each trained turn its span and the end of the prompt it answers.

    A prompt that is no prefix of the whole text has no end.
    """

    whole: SpelledText
    turns: list[tuple[Span, int | None]]
    counts: dict[str, Any]


class ConversationEncoder:
    """Encodes conversations with a fast tokenizer, or a view of one, and the template made for it."""

    def __init__(self, tokenizer: Any, template: ChatTemplate, options: EncodeOptions) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._options = options
        self._check = PromptCheck(tokenizer, template.control_tokens)
        self._end_mark_id = tokenizer.convert_tokens_to_ids(template.end_mark)

    def encode(self, rows: Sequence[Row], system: str | None) -> Iterator[EncodedRow]:
        """Encode rows with messages, in order; those without a system text get this one."""
        results = [self._render(row, system) for row in rows]
        rendered = [chat for chat in results if isinstance(chat, _RenderedRow)]
        texts = [chat.whole for chat in rendered]
        encoded = encode_all(self._tokenizer, texts, self._template.control_tokens)
        prompts = [
            (chat.whole, ids, end)
            for chat, ids in zip(rendered, encoded, strict=True)
            for _, end in chat.turns
            if end is not None
        ]
        leading = iter(self._check.count_leading(prompts))
        ids = iter(encoded)
        for chat in results:
            yield self._label(chat, next(ids), leading) if isinstance(chat, _RenderedRow) else chat

    def _render(self, row: Row, system: str | None) -> _RenderedRow | EncodedRow:
        """Render a row; the final answer at once where nothing is trained or the template refuses it."""
        messages = list(row.messages or ())
        if system and not any(message.role == "system" for message in messages):
            messages.insert(0, Message("system", system))
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        trained = [i for i in answers if messages[i].trained]
        kept = messages
        if self._options.train_on == "all":
            trained = answers
        elif not trained:
            return EncodedRow(dropped="no_trained_tokens")
        else:
            trained = trained[-1:] if self._options.train_on == "last" else trained
            kept = messages[: trained[-1] + 1]
        try:
            whole = self._template.render(kept, tools=row.tools)
        except TemplateFailure as failure:
            return EncodedRow(error=self._describe(failure))
        counts = {
            "turns_cut": len(messages) - len(kept),
            "rejected_unused": int(row.rejected is not None),
            "turns_shortened": whole.turns_shortened,
        }
        if len(kept) < len(messages):
            counts["cut_text"] = self._render_rest(whole.text, messages, len(kept), row.tools)
        kept_answers = (i for i in answers if i < len(kept))
        places = dict(zip(kept_answers, zip(whole.spans, whole.prompt_ends, strict=True), strict=True))
        return _RenderedRow(whole.spelled, [places[i] for i in trained], counts)

    def _render_rest(self, kept: str, messages: Sequence[Message], num_kept: int, tools: Tools) -> str:
        """Write the turns that were cut; as the template would have written them, where it can."""
        try:
            text = self._template.render(messages, tools=tools).text
        except TemplateFailure:
            text = ""
        if text.startswith(kept):
            return text[len(kept) :]
        return "\n".join(message.content for message in messages[num_kept:])

    def _describe(self, failure: TemplateFailure) -> str:
        return (
            f"template {self._template.name} refuses the row: {failure}: "
            "fix the row, or name another template (model.template)"
        )

    def _label(self, chat: _RenderedRow, row: Encoded, leading: Iterator[int | None]) -> EncodedRow:
        ids = np.array(row.ids, np.int32)
        labels = ids.copy() if self._options.train_on == "all" else np.full_like(ids, IGNORED)
        differs = False
        for (start, end), prompt_end in chat.turns:
            num_prompt = next(leading) if prompt_end is not None else None
            differs = differs or num_prompt is None
            if self._options.train_on == "all":
                continue
            # A tokenizer may join the blank that ends a prompt to the answer's first token, which is learned:
            # so the answer begins after the prompt's ids, not after its text.
            first = num_prompt if num_prompt is not None and prompt_end == start else row.first_at(start)
            last = self._find_last(row, end)
            labels[first:last] = ids[first:last]
        if not self._options.train_on_eot:
            labels[labels == self._end_mark_id] = IGNORED
        whole = WholeRow(Sample(ids, labels), chat.whole.text, lambda index: row.characters(index)[0])
        return fit(whole, self._options, prompt_differs=differs, **chat.counts)

    def _find_last(self, row: Encoded, end: int) -> int:
        """Find one past the last token of a span: the end mark may take in blanks that follow it."""
        last = row.first_at(end)
        if last and row.ids[last - 1] != self._end_mark_id and row.characters(last - 1)[1] > end:
            return last - 1
        return last
