"""Write the Jinja text of the built-in templates from what is special about each.

    "<|user|>\n{content}<|end|>\n"   ->   {{- '<|user|>\n' + message['content'] + '<|end|>\n' }}

Two shapes: turns that stand one after the other in any order (`loop`), and user and assistant in strict turn,
the system text before or inside the first question (`strict`). One template is written out: `CHATML_TOOLS`.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

BOS = "{%- if bos_token %}{{- bos_token }}{%- endif %}\n"
"""The beginning of all of them."""

_NAMES = {
    "content": "message['content']",
    "system": "(opening if loop.first else '')",
    "round": "(count.rounds | string)",
    "eos": "eos_token",
}
_TURNS = """\
{%- if message['role'] == 'system' %}
SYSTEM{%- elif message['role'] == 'user' %}
USER{%- elif message['role'] == 'assistant' %}
HEAD{%- generation %}
ANSWER{%- endgeneration %}
AFTER{%- else %}
{{- raise_exception('there is no place for the role ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
HEAD{%- endif %}"""
_LATE_SYSTEM = "{{- raise_exception('the system text must come first') }}\n"
_OUT_OF_TURN = """\
{%- if loop.index0 % 2 != PARITY %}
{{- raise_exception('turns must go user, assistant, user, .. and begin with the user') }}
{%- endif %}
"""

_TOOLS_HEAD = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>"
)
_TOOLS_FOOT = (
    "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\\n</tool_call><|im_end|>\\n"
)
CHATML_TOOLS = f"""\
{BOS}{{%- if tools %}}
{{{{- '<|im_start|>system\\n' }}}}
{{%- if messages and messages[0]['role'] == 'system' %}}
{{{{- messages[0]['content'] + '\\n\\n' }}}}
{{%- endif %}}
{{{{- '{_TOOLS_HEAD}' }}}}
{{%- for tool in tools %}}
{{{{- '\\n' + (tool | tojson) }}}}
{{%- endfor %}}
{{{{- '{_TOOLS_FOOT}' }}}}
{{%- endif %}}
{{%- for message in messages %}}
{{%- if message['role'] == 'system' %}}
{{%- if not (tools and loop.first) %}}
{{{{- '<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- elif message['role'] == 'user' %}}
{{{{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}}}
{{%- elif message['role'] == 'assistant' %}}
{{{{- '<|im_start|>assistant\\n' }}}}
{{%- generation %}}
{{{{- message['content'] }}}}
{{%- for call in message['tool_calls'] or [] %}}
{{%- if message['content'] or not loop.first %}}{{{{- '\\n' }}}}{{%- endif %}}
{{%- set arguments = call['function']['arguments'] %}}
{{{{- '<tool_call>\\n{{"name": "' + call['function']['name'] + '", "arguments": ' }}}}
{{{{- arguments if arguments is string else (arguments | tojson) }}}}
{{{{- '}}\\n</tool_call>' }}}}
{{%- endfor %}}
{{{{- '<|im_end|>' }}}}
{{%- endgeneration %}}
{{{{- '\\n' }}}}
{{%- elif message['role'] == 'tool' %}}
{{%- if loop.first or loop.previtem['role'] != 'tool' %}}
{{{{- '<|im_start|>user' }}}}
{{%- endif %}}
{{{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}}}
{{%- if loop.last or loop.nextitem['role'] != 'tool' %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- else %}}
{{{{- raise_exception('there is no place for the role ' + message['role']) }}}}
{{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
{{{{- '<|im_start|>assistant\\n' }}}}
{{%- endif %}}"""


class BuiltinTemplate(NamedTuple):
    """A template and what it needs of a tokenizer."""

    source: str
    control_tokens: tuple[str, ...] = ()
    """The tokenizer must have them."""
    end_mark: str | None = None
    """What ends a turn; None for the tokenizer's eos."""
    supports_tools: bool = False
    opening_tokens: tuple[str, ...] = ()
    """Written before everything else, where the tokenizer has them."""

    def source_for(self, tokens: Container[str]) -> str:
        """Write the template for one tokenizer.

        Args:
            tokens: The tokenizer's added tokens.

        Returns:
            Jinja text.
        """
        if not self.opening_tokens or not all(token in tokens for token in self.opening_tokens):
            return self.source
        return self.source.replace(BOS, BOS + write("".join(self.opening_tokens)), 1)


def write(pattern: str) -> str:
    """Write the statement that writes a text.

    Args:
        pattern: The text; {content}, {eos}, {system} and {round} stand for what is written there.

    Returns:
        A line of Jinja; nothing for an empty text.
    """
    return "{{- " + _expression(pattern) + " }}\n" if pattern else ""


def _expression(pattern: str) -> str:
    parts = [part for part in re.split(r"(\{[a-z]+\})", pattern) if part]
    return " + ".join(
        _NAMES[part[1:-1]]
        if part.startswith("{")
        else "'" + part.replace("'", "\\'").replace("\n", "\\n") + "'"
        for part in parts
    )


def _turns(**texts: str) -> str:
    return re.sub("SYSTEM|USER|HEAD|ANSWER|AFTER", lambda match: texts[match[0].lower()], _TURNS)


def loop(*, system: str, user: str, head: str, answer: str, after: str = "", opening: str = "") -> str:
    """Write a template whose turns stand one after the other.

    Args:
        system: A system turn.
        user: A user's turn.
        head: What leads to an answer; the end of the prompt.
        answer: What is learned.
        after: What follows it.
        opening: What begins a text that does not begin with a system turn.

    Returns:
        Jinja text.
    """
    lines = [BOS]
    if opening:
        test = "{%- if not messages or messages[0]['role'] != 'system' %}\n"
        lines += [test, write(opening), "{%- endif %}\n"]
    counting = ""
    if "{round}" in user:
        lines.append("{%- set count = namespace(rounds=0) %}\n")
        counting = "{%- set count.rounds = count.rounds + 1 %}\n"
    lines.append("{%- for message in messages %}\n")
    turns = _turns(
        system=write(system),
        user=counting + write(user),
        head=write(head),
        answer=write(answer),
        after=write(after),
    )
    return "".join([*lines, turns])


def strict(*, system: str, user: str, head: str, answer: str, after: str = "") -> str:
    """Write a template that wants user and assistant in turn.

    Args:
        system: How the system text is written.
        user: A user's turn; {system} is the place of the system text in the first.
        head: What leads to an answer; the end of the prompt.
        answer: What is learned.
        after: What follows it.

    Returns:
        Jinja text.
    """
    opening = _expression(system).replace("message[", "messages[0][")
    lines = [
        BOS,
        "{%- set opening = '' %}\n{%- set turns = messages %}\n",
        "{%- if messages and messages[0]['role'] == 'system' %}\n",
        f"{{%- set opening = {opening} %}}\n{{%- set turns = messages[1:] %}}\n",
        "{%- if not turns %}\n{{- raise_exception('a system text needs a user turn after it') }}\n",
        "{%- endif %}\n{%- endif %}\n{%- for message in turns %}\n",
    ]
    turns = _turns(
        system=_LATE_SYSTEM,
        user=_OUT_OF_TURN.replace("PARITY", "0") + write(user),
        head=write(head),
        answer=write(answer),
        after=write(after),
    )
    check = _OUT_OF_TURN.replace("PARITY", "1")
    branch = "{%- elif message['role'] == 'assistant' %}\n"
    return "".join([*lines, turns.replace(branch, branch + check, 1)])
