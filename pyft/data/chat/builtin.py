"""The chat templates pyft brings along, as the Jinja text that also goes into the saved tokenizer.

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

from pyft.data.chat.builtin_jinja import CHATML_TOOLS, BuiltinTemplate, loop, strict

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_CHATML = BuiltinTemplate(
    loop(
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        head="<|im_start|>assistant\n",
        answer="{content}<|im_end|>",
        after="\n",
    ),
    _CHATML_TOKENS,
    "<|im_end|>",
)
_CHATML_TOOLS = BuiltinTemplate(CHATML_TOOLS, _CHATML_TOKENS, "<|im_end|>", supports_tools=True)

# Plain text but for the end mark, which is the tokenizer's own eos: works with any tokenizer.
_DEFAULT = BuiltinTemplate(
    loop(
        system="<|System|>:{content}\n",
        user="<|User|>:{content}\n",
        head="<|Bot|>:",
        answer="{content}{eos}",
        after="\n",
    )
)

_INTERNLM = BuiltinTemplate(
    loop(
        system="<|System|>:{content}\n",
        user="<|User|>:{content}<eoh>\n",
        head="<|Bot|>:",
        answer="{content}<eoa>",
        after="\n",
    ),
    ("<eoh>", "<eoa>"),
    "<eoa>",
)

_MOSS = BuiltinTemplate(
    loop(
        system="{content}\n",
        user="<|Human|>: {content}<eoh>\n",
        head="<|MOSS|>:",
        answer=" {content}<eom>",
        after="\n",
    ),
    ("<eoh>", "<eom>"),
    "<eom>",
)

_LLAMA3 = BuiltinTemplate(
    loop(
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        head="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{content}<|eot_id|>",
    ),
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)

_LLAMA2 = BuiltinTemplate(
    strict(
        system="<<SYS>>\n{content}\n<</SYS>>\n\n",
        user="[INST] {system}{content} [/INST]",
        head="",
        answer=" {content} {eos}",
    )
)
_MISTRAL = BuiltinTemplate(
    strict(
        system="{content}\n\n",
        user=" [INST] {system}{content} [/INST]",
        head="",
        answer=" {content}{eos}",
    )
)

_GEMMA = BuiltinTemplate(
    strict(
        system="{content}\n\n",
        user="<start_of_turn>user\n{system}{content}<end_of_turn>\n",
        head="<start_of_turn>model\n",
        answer="{content}<end_of_turn>",
        after="\n",
    ),
    ("<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
)

_COHERE = BuiltinTemplate(
    strict(
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        user="{system}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        head="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        answer="{content}<|END_OF_TURN_TOKEN|>",
    ),
    (
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
    ),
    "<|END_OF_TURN_TOKEN|>",
)

_PHI3 = BuiltinTemplate(
    loop(
        system="<|system|>\n{content}<|end|>\n",
        user="<|user|>\n{content}<|end|>\n",
        head="<|assistant|>\n",
        answer="{content}<|end|>",
        after="\n",
    ),
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|end|>",
)

_ZEPHYR = BuiltinTemplate(
    loop(
        system="<|system|>\n{content}{eos}\n",
        user="<|user|>\n{content}{eos}\n",
        head="<|assistant|>\n",
        answer="{content}{eos}",
        after="\n",
    )
)

_CHATGLM2 = BuiltinTemplate(
    loop(
        system="{content}\n",
        user="[Round {round}]\n\n问：{content}\n\n",
        head="答：",
        answer="{content}{eos}",
        after="\n\n",
    ),
    opening_tokens=("[gMASK]", "sop"),
)
_CHATGLM3 = BuiltinTemplate(
    loop(
        system="<|system|>\n {content}",
        user="<|user|>\n {content}",
        head="<|assistant|>",
        answer="\n {content}{eos}",
    ),
    ("<|system|>", "<|user|>", "<|assistant|>"),
    opening_tokens=("[gMASK]", "sop"),
)

_BAICHUAN = BuiltinTemplate(
    loop(
        system="{content}\n", user="<reserved_102>{content}", head="<reserved_103>", answer="{content}{eos}"
    ),
    ("<reserved_102>", "<reserved_103>"),
)
_BAICHUAN2 = BuiltinTemplate(
    loop(system="{content}", user="<reserved_106>{content}", head="<reserved_107>", answer="{content}{eos}"),
    ("<reserved_106>", "<reserved_107>"),
)

_DEEPSEEK_MOE = BuiltinTemplate(
    loop(
        system="{content}\n\n",
        user="User: {content}\n\n",
        head="Assistant:",
        answer=" {content}{eos}",
    )
)
_DEEPSEEK_V2 = BuiltinTemplate(
    loop(
        system="{content}\n\n",
        user="User: {content}\n\n",
        head="Assistant:",
        answer=" {content}<｜end▁of▁sentence｜>",
    ),
    ("<｜end▁of▁sentence｜>",),
    "<｜end▁of▁sentence｜>",
)
_DEEPSEEK_CODER = BuiltinTemplate(
    loop(
        opening="You are an AI programming assistant, utilizing the Deepseek Coder model, developed by "
        "Deepseek Company, and you only answer questions related to computer science. For politically "
        "sensitive questions, security and privacy issues, and other non-computer science questions, you "
        "will refuse to answer\n",
        system="{content}\n",
        user="### Instruction:\n{content}\n",
        head="### Response:\n",
        answer="{content}\n{eos}",
        after="\n",
    )
)

_MINICPM = BuiltinTemplate(
    loop(system="{content}", user="<用户>{content}<AI>", head="", answer="{content}{eos}")
)

_VICUNA = BuiltinTemplate(
    loop(
        opening="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. ",
        system="{content} ",
        user="USER: {content} ",
        head="ASSISTANT:",
        answer=" {content}{eos}",
    )
)

_WIZARDCODER_TASK = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n"
)
_WIZARDCODER = BuiltinTemplate(
    loop(
        opening=_WIZARDCODER_TASK,
        system=_WIZARDCODER_TASK + "{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        head="### Response:",
        answer="{content}{eos}",
        after="\n\n",
    )
)

BUILTIN_TEMPLATES: dict[str, BuiltinTemplate] = {
    "baichuan2_chat": _BAICHUAN2,
    "baichuan_chat": _BAICHUAN,
    "chatglm2": _CHATGLM2,
    "chatglm3": _CHATGLM3,
    "chatml": _CHATML_TOOLS,
    "code_llama_chat": _LLAMA2,
    "cohere_chat": _COHERE,
    "deepseek_coder": _DEEPSEEK_CODER,
    "deepseek_moe": _DEEPSEEK_MOE,
    "deepseek_v2": _DEEPSEEK_V2,
    "default": _DEFAULT,
    "gemma": _GEMMA,
    "internlm2_chat": _CHATML,
    "internlm_chat": _INTERNLM,
    "llama2_chat": _LLAMA2,
    "llama3_chat": _LLAMA3,
    "minicpm": _MINICPM,
    "minicpm3": _CHATML,
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "moss_sft": _MOSS,
    "phi3_chat": _PHI3,
    "qwen_chat": _CHATML_TOOLS,
    "vicuna": _VICUNA,
    "wizardcoder": _WIZARDCODER,
    "wizardlm": _VICUNA,
    "zephyr": _ZEPHYR,
}
