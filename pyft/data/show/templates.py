"""The chat templates, and what each makes of a small conversation. No model is needed: a template
is shown with a tokenizer made on the spot, which has the control tokens that the template wants.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models

from pyft.data.chat.bind import get_template
from pyft.data.chat.builtin import BUILTIN_TEMPLATES, BuiltinTemplate
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.rendering import Rendered, Tools
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.chat.template_names import find_template
from pyft.data.rows.row import Message
from pyft.data.show.terminal import DIM, GREEN, escape, paint
from pyft.data.tokenizers.view import TokenizerView
from pyft.errors import ConfigError

_BOS, _EOS = "<s>", "</s>"

_TALK = [
    Message("system", "Answer briefly."),
    Message("user", "Which mountain is the highest?"),
    Message("assistant", "Mount Everest."),
    Message("user", "And the second?"),
    Message("assistant", "K2."),
]
_CALL = {"type": "function", "function": {"name": "get_height", "arguments": {"mountain": "K2"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_height",
        "description": "Height of a mountain in metres.",
        "parameters": {
            "type": "object",
            "properties": {"mountain": {"type": "string"}},
            "required": ["mountain"],
        },
    },
}
_TOOL_TALK = [
    Message("user", "How high is K2?"),
    Message("assistant", "", tool_calls=(_CALL,)),
    Message("tool", "8611", name="get_height"),
    Message("assistant", "8611 metres."),
]


def list_templates() -> str:
    """Return a line for each built-in template: its name, what ends a turn, what it needs."""
    rows = [("template", "ends a turn", "tools", "control tokens that the tokenizer must have")]
    for name, builtin in BUILTIN_TEMPLATES.items():
        needs = " ".join(builtin.control_tokens) or "none, it is plain text"
        rows.append((name, builtin.end_mark or "eos", "yes" if builtin.supports_tools else "", needs))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]))
        for row in rows
    ]
    hint = (
        "python -m pyft.data templates NAME shows one, or a .jinja file; model.template names it in a recipe"
    )
    return "\n".join([*lines, "", hint])


def show_template(name: str, colour: bool) -> str:
    """Return what a template, a built-in or a .jinja file, makes of a small conversation.

    What is learned is marked, in terminal colours where `colour` says so.
    """
    builtin = find_template(name)
    template = get_template(name, _make_tokenizer(builtin))
    learned = "green" if colour else "in ⟦ ⟧"
    lines = [
        f"{name}: BOS is {_BOS}, eos {_EOS}; {template.end_mark} ends a turn; learned is what is {learned}",
        "",
        _show(template, _TALK, (), colour),
    ]
    if template.supports_tools:
        lines += ["", "with tools:", "", _show(template, _TOOL_TALK, (_TOOL,), colour)]
    return "\n".join(lines)


def _make_tokenizer(builtin: BuiltinTemplate) -> TokenizerView:
    tokens = dict.fromkeys((_BOS, _EOS, *builtin.control_tokens))
    backend = Tokenizer(models.BPE())
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    decoder = backend.get_added_tokens_decoder()
    encoder = {token.content: token_id for token_id, token in decoder.items()}
    return TokenizerView(backend, {"bos_token": _BOS, "eos_token": _EOS}, encoder, decoder)


def _show(template: ChatTemplate, talk: list[Message], tools: Tools, colour: bool) -> str:
    note = ""
    try:
        try:
            rendered = template.render(talk, tools=tools)
        except TemplateFailure as failure:
            if talk[0].role != "system":
                raise
            note = f"(without a system text: {failure})\n"
            rendered = template.render(talk[1:], tools=tools)
    except TemplateFailure as failure:
        raise ConfigError(
            f"{template.name} cannot render a small conversation: {failure} (templates): fix the file"
        ) from None
    return note + _mark(rendered, colour)


def _mark(rendered: Rendered, colour: bool) -> str:
    text = rendered.text.rstrip("\n")
    shown, done = "", 0
    for start, end in [*rendered.spans, (len(text), len(text))]:
        around, answer = escape(text[done:start]), escape(text[start:end])
        shown += paint(around, DIM) if colour and around else around
        if answer:
            shown += paint(answer, GREEN) if colour else f"⟦{answer}⟧"
        done = end
    return shown
