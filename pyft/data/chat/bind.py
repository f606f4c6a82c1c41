"""Chat templates: one renderer for training, chat, questions during training and the saved tokenizer.

A template is Jinja text: one of pyft's own, a file's, or the tokenizer's. It is bound to a tokenizer, whose
BOS and eos it writes and whose control tokens it needs.
"""

from __future__ import annotations

from typing import Any

from pyft.config.modes import MODES
from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.template_names import find_template, is_file_name, read_template
from pyft.data.tokenizers.text import document_start, encode_all, special_spellings, spell_document
from pyft.errors import ConfigError


def get_template(name: str | None, tokenizer: Any) -> ChatTemplate:
    """Bind a template (a built-in's name, a .jinja file, None for the tokenizer's own) to a tokenizer.

    Its `source` goes into the saved tokenizer's `chat_template`. ConfigError if there is no such template,
    the tokenizer lacks an eos or the control tokens that it writes, or no mask can be found for it.
    """
    builtin = None if name is None or is_file_name(name) else find_template(name)
    source = read_template(name) if name is not None and builtin is None else None
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "model.tokenizer: the tokenizer has no eos token, so no answer could end: set eos_token in it"
        )
    if builtin is None or name is None:
        if source is None:
            try:
                source = tokenizer.get_chat_template()
            except ValueError:
                raise ConfigError(
                    "model.template: the tokenizer brings no chat template of its own: name a built-in one "
                    f"({', '.join(BUILTIN_TEMPLATES)})"
                ) from None
        template = ChatTemplate(name or "the tokenizer's own", source, tokenizer, None)
        template.check_marks()
        return template
    missing = [token for token in builtin.control_tokens if token not in tokenizer.added_tokens_encoder]
    if missing:
        raise ConfigError(
            f"model.template: {name} needs the control tokens {', '.join(missing)}, which the tokenizer "
            "does not have: name the template the model was made with, or default, which is plain text"
        )
    source = builtin.source_for(tokenizer.added_tokens_encoder)
    return ChatTemplate(name, source, tokenizer, builtin.end_mark or tokenizer.eos_token, builtin)


def trained_template(mode: str | None, name: str | None, tokenizer: Any) -> ChatTemplate | None:
    """Return the template a run was trained with; None if it was only pretrained, or has none.

    The text of a .jinja file is in the tokenizer saved with the run.
    """
    if is_file_name(name):
        name = None
    if (mode in MODES and not MODES[mode].has_template) or (name is None and not tokenizer.chat_template):
        return None
    return get_template(name, tokenizer)


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that ask a pretrained model to continue a text; it begins as its documents did."""
    spellings = special_spellings(tokenizer)
    spelled = spell_document(text, document_start(tokenizer), spellings)
    return encode_all(tokenizer, [spelled], spellings)[0].ids
