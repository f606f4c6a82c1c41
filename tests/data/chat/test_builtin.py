"""The built-in templates: golden texts, spans and prompts, what they need and what they refuse."""

from __future__ import annotations

import random
import re

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pyft.data.chat.bind import get_template
from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.chat.sandbox import TemplateFailure
from pyft.data.rows.row import Message
from pyft.errors import ConfigError

# The names of XTuner's table, and chatml.
# fmt: off
NAMES = [
    "default", "zephyr", "internlm_chat", "internlm2_chat", "moss_sft", "llama2_chat", "code_llama_chat",
    "chatglm2", "chatglm3", "qwen_chat", "baichuan_chat", "baichuan2_chat", "wizardlm", "wizardcoder",
    "vicuna", "deepseek_coder", "deepseek_moe", "deepseek_v2", "mistral", "mixtral", "minicpm", "minicpm3",
    "gemma", "cohere_chat", "llama3_chat", "phi3_chat", "chatml",
]
# fmt: on
TALK = [
    Message("system", "S"),
    Message("user", "u1"),
    Message("assistant", " a1 "),
    Message("user", "u2\n"),
    Message("assistant", "a2"),
]
# What is learned stands in ⟦ ⟧; {bos} and {eos} are the tokenizer's. The contents keep their blanks.
CHATML = (
    "{bos}<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n"
    "<|im_start|>assistant\n⟦ a1 <|im_end|>⟧\n<|im_start|>user\nu2\n<|im_end|>\n"
    "<|im_start|>assistant\n⟦a2<|im_end|>⟧\n"
)
LLAMA2 = "{bos}[INST] <<SYS>>\nS\n<</SYS>>\n\nu1 [/INST]⟦  a1  {eos}⟧[INST] u2\n [/INST]⟦ a2 {eos}⟧"
MISTRAL = "{bos} [INST] S\n\nu1 [/INST]⟦  a1 {eos}⟧ [INST] u2\n [/INST]⟦ a2{eos}⟧"
VICUNA = "{bos}S USER: u1 ASSISTANT:⟦  a1 {eos}⟧USER: u2\n ASSISTANT:⟦ a2{eos}⟧"
WIZARD_TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
CHATBOT = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
LLAMA3_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
GOLDEN = {
    "chatml": CHATML,
    "qwen_chat": CHATML,
    "internlm2_chat": CHATML,
    "minicpm3": CHATML,
    "internlm_chat": "{bos}<|System|>:S\n<|User|>:u1<eoh>\n<|Bot|>:⟦ a1 <eoa>⟧\n"
    "<|User|>:u2\n<eoh>\n<|Bot|>:⟦a2<eoa>⟧\n",
    "default": "{bos}<|System|>:S\n<|User|>:u1\n<|Bot|>:⟦ a1 {eos}⟧\n<|User|>:u2\n\n<|Bot|>:⟦a2{eos}⟧\n",
    "zephyr": "{bos}<|system|>\nS{eos}\n<|user|>\nu1{eos}\n<|assistant|>\n⟦ a1 {eos}⟧\n"
    "<|user|>\nu2\n{eos}\n<|assistant|>\n⟦a2{eos}⟧\n",
    "moss_sft": "{bos}S\n<|Human|>: u1<eoh>\n<|MOSS|>:⟦  a1 <eom>⟧\n"
    "<|Human|>: u2\n<eoh>\n<|MOSS|>:⟦ a2<eom>⟧\n",
    "llama2_chat": LLAMA2,
    "code_llama_chat": LLAMA2,
    "mistral": MISTRAL,
    "mixtral": MISTRAL,
    "chatglm2": "{bos}S\n[Round 1]\n\n问：u1\n\n答：⟦ a1 {eos}⟧\n\n"
    "[Round 2]\n\n问：u2\n\n\n答：⟦a2{eos}⟧\n\n",
    "chatglm3": "{bos}<|system|>\n S<|user|>\n u1<|assistant|>⟦\n  a1 {eos}⟧"
    "<|user|>\n u2\n<|assistant|>⟦\n a2{eos}⟧",
    "baichuan_chat": "{bos}S\n<reserved_102>u1<reserved_103>⟦ a1 {eos}⟧"
    "<reserved_102>u2\n<reserved_103>⟦a2{eos}⟧",
    "baichuan2_chat": "{bos}S<reserved_106>u1<reserved_107>⟦ a1 {eos}⟧"
    "<reserved_106>u2\n<reserved_107>⟦a2{eos}⟧",
    "vicuna": VICUNA,
    "wizardlm": VICUNA,
    "wizardcoder": "{bos}" + WIZARD_TASK + "\n\nS\n\n### Instruction:\nu1\n\n### Response:⟦ a1 {eos}⟧\n\n"
    "### Instruction:\nu2\n\n\n### Response:⟦a2{eos}⟧\n\n",
    "deepseek_coder": "{bos}S\n### Instruction:\nu1\n### Response:\n⟦ a1 \n{eos}⟧\n"
    "### Instruction:\nu2\n\n### Response:\n⟦a2\n{eos}⟧\n",
    "deepseek_moe": "{bos}S\n\nUser: u1\n\nAssistant:⟦  a1 {eos}⟧User: u2\n\n\nAssistant:⟦ a2{eos}⟧",
    "deepseek_v2": "{bos}S\n\nUser: u1\n\nAssistant:⟦  a1 <｜end▁of▁sentence｜>⟧"
    "User: u2\n\n\nAssistant:⟦ a2<｜end▁of▁sentence｜>⟧",
    "minicpm": "{bos}S<用户>u1<AI>⟦ a1 {eos}⟧<用户>u2\n<AI>⟦a2{eos}⟧",
    "gemma": "{bos}<start_of_turn>user\nS\n\nu1<end_of_turn>\n<start_of_turn>model\n⟦ a1 <end_of_turn>⟧\n"
    "<start_of_turn>user\nu2\n<end_of_turn>\n<start_of_turn>model\n⟦a2<end_of_turn>⟧\n",
    "cohere_chat": "{bos}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>u1<|END_OF_TURN_TOKEN|>" + CHATBOT + "⟦ a1 <|END_OF_TURN_TOKEN|>⟧"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>u2\n<|END_OF_TURN_TOKEN|>" + CHATBOT + "⟦a2<|END_OF_TURN_TOKEN|>⟧",
    "llama3_chat": "{bos}" + LLAMA3_HEAD.format("system") + "S<|eot_id|>"
    "" + LLAMA3_HEAD.format("user") + "u1<|eot_id|>" + LLAMA3_HEAD.format("assistant") + "⟦ a1 <|eot_id|>⟧"
    "" + LLAMA3_HEAD.format("user") + "u2\n<|eot_id|>" + LLAMA3_HEAD.format("assistant") + "⟦a2<|eot_id|>⟧",
    "phi3_chat": "{bos}<|system|>\nS<|end|>\n<|user|>\nu1<|end|>\n<|assistant|>\n⟦ a1 <|end|>⟧\n"
    "<|user|>\nu2\n<|end|>\n<|assistant|>\n⟦a2<|end|>⟧\n",
}  # fmt: skip
STRICT = ("llama2_chat", "code_llama_chat", "mistral", "mixtral", "gemma", "cohere_chat")
PLAIN = [name for name in NAMES if not BUILTIN_TEMPLATES[name].control_tokens]


def with_marks(rendered) -> str:
    text = rendered.text
    for start, end in reversed(rendered.spans):
        text = text[:start] + "⟦" + text[start:end] + "⟧" + text[end:]
    return text


def make_tokenizer(*tokens: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|endoftext|>", *tokens)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token=bos)


def test_every_name_of_the_table_is_there():
    assert set(NAMES) == set(BUILTIN_TEMPLATES) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("kind", ["bpe", "bpe_with_bos"])
def test_golden_text_spans_and_prompts(request, name, kind):
    tokenizer = request.getfixturevalue(kind)
    template = get_template(name, tokenizer)
    bos = "<s>" if kind == "bpe_with_bos" else ""
    golden = GOLDEN[name].format(bos=bos, eos="<|endoftext|>")
    whole = template.render(TALK)
    assert with_marks(whole) == golden
    assert whole.text.count("<s>") == bool(bos)
    assert whole.prompt_ends == tuple(start for start, _ in whole.spans)
    prompts = [part.replace("⟧", "").replace("⟦", "") for part in re.split("(?=⟦)", golden)]
    assert template.render(TALK[:2], add_generation_prompt=True).text == prompts[0]
    assert template.render(TALK[:4], add_generation_prompt=True).text == prompts[0] + prompts[1]
    ids = template.encode_prompt(tokenizer, TALK[:4])
    assert tokenizer(whole.text, add_special_tokens=False)["input_ids"][: len(ids)] == ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["bpe", "bpe_with_bos"])
def test_transformers_renders_and_masks_the_same(request, tmp_path, name, kind):
    tokenizer = request.getfixturevalue(kind)
    template = get_template(name, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    saved.chat_template = template.source
    saved.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    dicts = [{"role": m.role, "content": m.content} for m in TALK]
    assert loaded.apply_chat_template(dicts, tokenize=False) == template.render(TALK).text
    prompt = loaded.apply_chat_template(dicts[:4], tokenize=False, add_generation_prompt=True)
    assert prompt == template.render(TALK[:4], add_generation_prompt=True).text
    ids = loaded.apply_chat_template(dicts[:4], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.encode_prompt(tokenizer, dicts[:4]) == ids == template.encode_prompt(tokenizer, TALK[:4])
    # The tokenizer's own template is now this one.
    own = get_template(None, loaded)
    assert own.source == template.source
    assert own.render(TALK) == template.render(TALK)
    assert own.end_mark == template.end_mark
    assert own.supports_tools == template.supports_tools


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("vicuna", "A chat between a curious user"),
        ("wizardlm", "A chat between a curious user"),
        ("wizardcoder", WIZARD_TASK),
        ("deepseek_coder", "You are an AI programming assistant, utilizing the Deepseek Coder model"),
    ],
)
def test_an_opening_sentence_where_there_is_no_system_text(bpe, name, opening):
    template = get_template(name, bpe)
    assert template.render(TALK[1:]).text.startswith(opening)
    assert template.render([], add_generation_prompt=True).text.startswith(opening)
    assert (opening in template.render(TALK).text) == (name == "wizardcoder")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vicuna", "wizardlm")])
def test_no_text_that_nobody_wrote(bpe, name):
    # Without a system text: exactly what the golden text has without it, but for the openings above.
    if name in ("wizardcoder", "deepseek_coder"):
        return
    whole, without = get_template(name, bpe).render(TALK).text, get_template(name, bpe).render(TALK[1:]).text
    index = without.index("u1")
    assert whole.endswith(without[index:])
    assert len(without) < len(whole)


def test_chatglm_opens_with_its_prefix_where_the_tokenizer_has_it():
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    template = get_template("chatglm3", make_tokenizer(*roles, "[gMASK]", "sop"))
    assert template.render(TALK[:2]).text == "[gMASK]sop<|system|>\n S<|user|>\n u1"
    assert template.source != BUILTIN_TEMPLATES["chatglm3"].source
    half = get_template("chatglm2", make_tokenizer("sop"))
    assert half.render(TALK[1:2]).text == "[Round 1]\n\n问：u1\n\n"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PLAIN])
def test_missing_control_tokens_are_named(name):
    tokens = BUILTIN_TEMPLATES[name].control_tokens
    get_template(name, make_tokenizer(*tokens))
    for missing in tokens:
        tokenizer = make_tokenizer(*(token for token in tokens if token != missing))
        with pytest.raises(ConfigError) as caught:
            get_template(name, tokenizer)
        message = str(caught.value)
        assert f"{name} needs the control tokens {missing}, which the tokenizer does not have" in message


@pytest.mark.parametrize("name", PLAIN)
def test_plain_text_works_with_any_tokenizer(name, spm):
    for tokenizer in (make_tokenizer(), spm):
        template = get_template(name, tokenizer)
        whole = template.render(TALK)
        assert [whole.text[a:b].strip() for a, b in whole.spans] == [
            "a1" + re.search(r"a1(\s*)", whole.text)[1] + tokenizer.eos_token,
            "a2" + re.search(r"a2(\s*)", whole.text)[1] + tokenizer.eos_token,
        ]


@pytest.mark.parametrize("name", NAMES)
def test_stop_ids(bpe, name):
    template = get_template(name, bpe)
    stops = bpe.convert_ids_to_tokens(template.stop_token_ids(bpe))
    assert stops == list(dict.fromkeys([template.end_mark, "<|endoftext|>"]))
    assert template.end_mark == (BUILTIN_TEMPLATES[name].end_mark or "<|endoftext|>")


@pytest.mark.parametrize("name", NAMES)
def test_orders_of_turns(bpe, name):
    template = get_template(name, bpe)
    odd = [
        [Message("assistant", "Hi!"), *TALK[1:3]],
        [TALK[1], TALK[1], TALK[2]],
        [*TALK[1:3], Message("system", "S"), TALK[4]],
        [*TALK[1:3], TALK[4]],
    ]
    for talk in odd:
        if name in STRICT:
            with pytest.raises(TemplateFailure, match=r"turns must go user, assistant|must come first"):
                template.render(talk)
            continue
        text = template.render(talk).text
        assert all(message.content in text for message in talk)
    if name in STRICT:
        with pytest.raises(TemplateFailure, match="needs a user turn after it"):
            template.render(TALK[:1], add_generation_prompt=True)


@pytest.mark.parametrize("name", NAMES)
def test_tools_have_a_place_or_are_refused(bpe, name):
    template = get_template(name, bpe)
    talk = [Message("user", "a"), Message("tool", "b")]
    assert template.supports_tools == (name in ("chatml", "qwen_chat"))
    if not template.supports_tools:
        with pytest.raises(TemplateFailure, match="it has no place for tools; chatml, qwen_chat have one"):
            template.render(talk)
        with pytest.raises(TemplateFailure, match="no place for tools"):
            template.render(TALK, tools=[{"type": "function", "function": {"name": "f"}}])


PIECES = [
    "a",
    " ",
    "\n",
    "\n\n",
    "river ",
    "峰",
    "😀",
    "<|im_end|>",
    "<eoa>",
    "{{ 1 }}",
    "[/INST]",
    "<think>",
    "</think>",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_filled_frame_is_what_rendering_gives(bpe, name):
    template = get_template(name, bpe)
    slow = get_template(name, bpe)
    slow._get_frame = lambda roles, prompt: None
    rng = random.Random(name)
    for _ in range(40):
        talk = [Message("system", "".join(rng.choices(PIECES, k=3)))] if rng.random() < 0.5 else []
        for number in range(rng.randint(2, 7)):
            content = "".join(rng.choices(PIECES, k=rng.randint(0, 6)))
            talk.append(Message("assistant" if number % 2 else "user", content))
        whole = template.render(talk)
        assert whole == slow.render(talk)
        for index, message in enumerate(talk):
            if message.role != "assistant":
                continue
            # The prompt that chat sends is always the text before the span.
            prompt = slow.render(talk[:index], add_generation_prompt=True)
            assert prompt == template.render(talk[:index], add_generation_prompt=True)
            assert (
                prompt.text == whole.text[: whole.spans[sum(m.role == "assistant" for m in talk[:index])][0]]
            )
            assert prompt.literals == tuple(span for span in whole.literals if span[1] <= len(prompt.text))


def test_a_filled_frame_holds_contents_that_look_like_placeholders(bpe):
    template = get_template("chatml", bpe)
    talk = [Message("user", "\U000f0001\U000f0000"), Message("assistant", "\U000f0000\ufdd0")]
    assert with_marks(template.render(talk)) == (
        "<|im_start|>user\n\U000f0001\U000f0000<|im_end|>\n"
        "<|im_start|>assistant\n⟦\U000f0000\ufdd0<|im_end|>⟧\n"
    )


def test_a_template_is_rendered_once_for_each_order_of_roles(bpe, monkeypatch):
    template = get_template("llama3_chat", bpe)
    calls = []
    render = ChatTemplate._render_text
    monkeypatch.setattr(ChatTemplate, "_render_text", lambda *args: calls.append(1) or render(*args))
    for number in range(300):
        template.render([Message("user", str(number)), Message("assistant", "a")])
    assert len(calls) == 1
    for number in range(300):
        template.render([Message("user", "a")] * number)
    assert len(template._frames) <= 256
