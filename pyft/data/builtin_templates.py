"""The chat templates pyft brings along, as the Jinja text that also goes into the saved tokenizer.

Each writes the tokenizer's BOS once, where it has one, and encloses in `{% generation %}` what is learned:
the assistant's content and the mark that ends the turn, nothing after it. Where XTuner's string and the
model maker's differ, the maker's is used. Differences from the makers' own, on purpose:

- qwen_chat writes no system text of its own (Qwen2.5's template adds "You are Qwen, ..", Qwen3's adds
  none): give one as `data.system`, or take `template: null` for the tokenizer's own;
- llama3_chat leaves contents as they are (the maker's trims blanks at both ends), and writes no date.
"""

from __future__ import annotations

from typing import NamedTuple


class BuiltinTemplate(NamedTuple):
    """A template's text, the control tokens it needs, what ends a turn (None: the tokenizer's eos)."""

    source: str
    control_tokens: tuple[str, ...]
    end_mark: str | None


def _loop(system: str, user: str, assistant_head: str, end: str, after: str) -> str:
    """Compose the Jinja text of a template.

    `system` and `user` are Jinja expressions of `message`, `end` is one of the end mark, the others are
    plain text.
    """
    return (
        "{%- if bos_token %}{{- bos_token }}{%- endif %}\n"
        "{%- for message in messages %}\n"
        "{%- if message['role'] == 'system' %}\n"
        "{{- " + system + " }}\n"
        "{%- elif message['role'] == 'user' %}\n"
        "{{- " + user + " }}\n"
        "{%- elif message['role'] == 'assistant' %}\n"
        "{{- '" + assistant_head + "' }}\n"
        "{%- generation %}\n"
        "{{- message['content'] + " + end + " }}\n"
        "{%- endgeneration %}\n" + ("{{- '" + after + "' }}\n" if after else "") + "{%- else %}\n"
        "{{- raise_exception('there is no place for the role ' + message['role']) }}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "{{- '" + assistant_head + "' }}\n"
        "{%- endif %}"
    )


_CHATML = BuiltinTemplate(
    _loop(
        system="'<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n'",
        user="'<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n'",
        assistant_head="<|im_start|>assistant\\n",
        end="'<|im_end|>'",
        after="\\n",
    ),
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)

_INTERNLM = BuiltinTemplate(
    _loop(
        system="'<|System|>:' + message['content'] + '\\n'",
        user="'<|User|>:' + message['content'] + '<eoh>\\n'",
        assistant_head="<|Bot|>:",
        end="'<eoa>'",
        after="\\n",
    ),
    ("<eoh>", "<eoa>"),
    "<eoa>",
)

_LLAMA3_HEAD = "<|start_header_id|>{}<|end_header_id|>\\n\\n"
_LLAMA3 = BuiltinTemplate(
    _loop(
        system=f"'{_LLAMA3_HEAD.format('system')}' + message['content'] + '<|eot_id|>'",
        user=f"'{_LLAMA3_HEAD.format('user')}' + message['content'] + '<|eot_id|>'",
        assistant_head=_LLAMA3_HEAD.format("assistant"),
        end="'<|eot_id|>'",
        after="",
    ),
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)

# Plain text but for the end mark, which is the tokenizer's own eos: works with any tokenizer.
_DEFAULT = BuiltinTemplate(
    _loop(
        system="'<|System|>:' + message['content'] + '\\n'",
        user="'<|User|>:' + message['content'] + '\\n'",
        assistant_head="<|Bot|>:",
        end="eos_token",
        after="\\n",
    ),
    (),
    None,
)

BUILTIN_TEMPLATES: dict[str, BuiltinTemplate] = {
    "chatml": _CHATML,
    "default": _DEFAULT,
    "internlm2_chat": _CHATML,
    "internlm_chat": _INTERNLM,
    "llama3_chat": _LLAMA3,
    "qwen_chat": _CHATML,
}
