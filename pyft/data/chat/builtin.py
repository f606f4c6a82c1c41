"""The chat templates that come with pyft: the table of their names and of what each needs of a tokenizer.

Their Jinja text is in templates/*.jinja. It goes into the saved tokenizer and is part of a run's identity: a
change of one character makes another run.

Each writes the tokenizer's BOS once, where it has one, and encloses in `{% generation %}` what is learned:
what the model has to write after the prompt, up to the mark that ends the turn, and nothing after it. The
names are XTuner's; the text is the model maker's own wherever the two differ. `{system}` is a system text.

name                  the maker's form, where XTuner writes something else
baichuan_chat         no newline between turns, or
baichuan2_chat        (2) after the system text
chatglm2, chatglm3    [gMASK]sop first, where the tokenizer has these tokens; (3) a blank before contents,
                      and the newline after <|assistant|> is the model's to write
code_llama_chat       as llama2_chat
cohere_chat           strict turns: user, assistant, user, ..
deepseek_coder        the long system sentence only where there is no system text; a newline before eos
deepseek_moe          User: and Assistant:, as deepseek_v2
deepseek_v2           the prompt ends with `Assistant:`, the blank after it is the model's to write
gemma                 the system text begins the first user turn; strict turns
llama2_chat           `<<SYS>>` inside the first [INST], no safety text of its own; blanks around answers;
                      strict turns
minicpm               no blanks around contents, no newline between turns
mistral, mixtral      the system text inside the first [INST]; blanks before [INST] and answers; strict turns
moss_sft              answers are <|MOSS|>: .. <eom>
vicuna, wizardlm      the opening sentence only where there is no system text; no newline between turns
wizardcoder           `{system}` between two empty lines
zephyr                eos after every turn

Where pyft differs from the makers, on purpose:

- BOS once: Llama 2's own writes it again at every question;
- contents are written as they are: Llama, Gemma, Cohere and MiniCPM trim blanks at both ends;
- every answer ends with a mark that is learned: the makers of Baichuan, ChatGLM and MiniCPM write eos at
  the end of training texts only; Phi-3's own writes a last eos, which nothing would learn;
- no system text appears that nobody wrote (Qwen2.5's own adds "You are Qwen, ..", llama3_chat's a date),
  but for the opening sentences named above, which those models always saw: give one as `data.system`;
- internlm_chat is the form of the first release, which XTuner has too (a later one leaves out <eoh>);
- chatml and qwen_chat write tools and calls as Qwen2.5 does. MiniCPM3, Cohere and others have forms of their
  own for these: take `template: null` for the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

TEMPLATES_FOLDER = Path(__file__).resolve().parent / "templates"


class BuiltinTemplate(NamedTuple):
    """A template and what it needs of a tokenizer."""

    source: str
    control_tokens: tuple[str, ...] = ()
    """The tokenizer must have them."""
    end_mark: str | None = None
    """What ends a turn; None for the tokenizer's eos."""
    supports_tools: bool = False
    opening_tokens: tuple[str, ...] = ()
    """Written right after BOS, where the tokenizer has all of them."""

    def source_for(self, tokens: Container[str]) -> str:
        """Return the Jinja text for a tokenizer that has the added tokens `tokens`."""
        if not self.opening_tokens or not all(token in tokens for token in self.opening_tokens):
            return self.source
        bos, rest = self.source.split("\n", 1)
        return f"{bos}\n{{{{- '{''.join(self.opening_tokens)}' }}}}\n{rest}"


# fmt: off
_TABLE: dict[str, tuple[str, str | None, str]] = {
    # name: (file in templates/, what ends a turn or None for eos, control tokens)
    "baichuan2_chat": ("baichuan2_chat", None, "<reserved_106> <reserved_107>"),
    "baichuan_chat": ("baichuan_chat", None, "<reserved_102> <reserved_103>"),
    "chatglm2": ("chatglm2", None, ""),
    "chatglm3": ("chatglm3", None, "<|system|> <|user|> <|assistant|>"),
    "chatml": ("chatml", "<|im_end|>", "<|im_start|> <|im_end|>"),
    "code_llama_chat": ("llama2_chat", None, ""),
    "cohere_chat": (
        "cohere_chat", "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>",
    ),
    "deepseek_coder": ("deepseek_coder", None, ""),
    "deepseek_moe": ("deepseek_moe", None, ""),
    "deepseek_v2": ("deepseek_v2", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "default": ("default", None, ""),
    "gemma": ("gemma", "<end_of_turn>", "<start_of_turn> <end_of_turn>"),
    "internlm2_chat": ("internlm2_chat", "<|im_end|>", "<|im_start|> <|im_end|>"),
    "internlm_chat": ("internlm_chat", "<eoa>", "<eoh> <eoa>"),
    "llama2_chat": ("llama2_chat", None, ""),
    "llama3_chat": ("llama3_chat", "<|eot_id|>", "<|start_header_id|> <|end_header_id|> <|eot_id|>"),
    "minicpm": ("minicpm", None, ""),
    "minicpm3": ("internlm2_chat", "<|im_end|>", "<|im_start|> <|im_end|>"),
    "mistral": ("mistral", None, ""),
    "mixtral": ("mistral", None, ""),
    "moss_sft": ("moss_sft", "<eom>", "<eoh> <eom>"),
    "phi3_chat": ("phi3_chat", "<|end|>", "<|system|> <|user|> <|assistant|> <|end|>"),
    "qwen_chat": ("chatml", "<|im_end|>", "<|im_start|> <|im_end|>"),
    "vicuna": ("vicuna", None, ""),
    "wizardcoder": ("wizardcoder", None, ""),
    "wizardlm": ("vicuna", None, ""),
    "zephyr": ("zephyr", None, ""),
}
# fmt: on
_WITH_TOOLS = ("chatml",)
"""Files that write tools and calls."""
_OPENING_TOKENS = {"chatglm2": ("[gMASK]", "sop"), "chatglm3": ("[gMASK]", "sop")}

BUILTIN_TEMPLATES = {
    name: BuiltinTemplate(
        (TEMPLATES_FOLDER / f"{file}.jinja").read_text(encoding="utf-8").removesuffix("\n"),
        tuple(control_tokens.split()),
        end_mark,
        file in _WITH_TOOLS,
        _OPENING_TOKENS.get(file, ()),
    )
    for name, (file, end_mark, control_tokens) in _TABLE.items()
}
