"""What holds for any conversation: only answers are learned, what people write is text, all is counted."""

from __future__ import annotations

import pytest
from encoded import encode
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyft.config.modes import SFT
from pyft.data.chat.bind import get_template
from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.rows.row import Message, Row
from pyft.data.tokenizers.text import special_spellings

PROFILE = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONTROLS = sorted({token for builtin in BUILTIN_TEMPLATES.values() for token in builtin.control_tokens})
# Blanks that tokenizers join, marks that templates write, the characters that placeholders are made of.
PIECES = [
    *CONTROLS,
    *(
        "<s>",
        "</s>",
        "<|endoftext|>",
        "[INST]",
        " [/INST]",
        "<<SYS>>",
        "### Response:",
        "Assistant:",
        "</think>",
    ),
    *(
        "\n",
        "\n\n",
        " ",
        "  ",
        "\t",
        "\r\n",
        "\u3000",
        "\u2028",
        "a",
        "the river",
        "峰",
        "世界",
        "42",
        ".",
        ":",
    ),
    *(
        "😀",
        "e\u0301",
        "\u200d",
        "\U000f0000",
        "\U000f0001",
        "\ufffd",
        "▁",
        "<0x0A>",
        "{{ x }}",
        "{% generation %}",
    ),
]
CONTENTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), min_size=1, max_size=6).map(
    "".join
)
# No format lets an answer through that is blank.
ANSWERS = CONTENTS.filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Questions and answers; at times a system text, answers not learned, an open question at the end."""
    talk = [Message("system", draw(CONTENTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        talk.append(Message("user", draw(CONTENTS)))
        talk.append(Message("assistant", draw(ANSWERS), trained=draw(st.booleans())))
    return (*talk, Message("user", draw(CONTENTS))) if draw(st.booleans()) else tuple(talk)


def stretches(labels: list[int]) -> list[list[int]]:
    """The learned labels, those side by side together."""
    found: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            found.append([])
        else:
            found[-1].append(label)
    return [stretch for stretch in found if stretch]


@pytest.fixture(scope="module")
def bind(tokenizers):
    """Encoder, template and tokenizer by name, each made once."""
    made: dict = {}

    def bind(template_name: str, tokenizer_name: str):
        key = template_name, tokenizer_name
        if key not in made:
            tokenizer = tokenizers[tokenizer_name]
            template = get_template(template_name, tokenizer)
            made[key] = RowEncoder(tokenizer, template, EncodeOptions(SFT)), template, tokenizer
        return made[key]

    return bind


def encode_talk(encoder: RowEncoder, talk: tuple[Message, ...]):
    (row,) = encode(encoder, [Row(talk, None)])
    assert row.error is None
    return row


@PROFILE
@given(conversations(), st.sampled_from(sorted(BUILTIN_TEMPLATES)))
def test_only_answers_are_learned_and_people_write_text(bind, tokenizer_name, talk, template_name):
    encoder, template, tokenizer = bind(template_name, tokenizer_name)
    row = encode_talk(encoder, talk)
    trained = [index for index, message in enumerate(talk) if message.role == "assistant" and message.trained]
    if not trained:
        assert row.samples == () and row.dropped == "no_trained_tokens"
        return
    (sample,) = row.samples
    ids, labels = sample.input_ids, sample.labels
    assert len(ids) == len(labels) == row.num_tokens
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    assert row.turns_cut == len(talk) - trained[-1] - 1

    # Each stretch that is learned is an answer and its end mark; where a token joins the prompt's last
    # character with the answer's first it is not learned, and the row is counted.
    learned = stretches(labels)
    assert len(learned) == len(trained)
    stop = template.stop_token_ids(tokenizer)[0]
    for stretch, index in zip(learned, trained, strict=True):
        assert stretch[-1] == stop
        # "▁" is how sentencepiece writes a blank, and so how it reads one.
        text = tokenizer.decode(stretch[:-1], skip_special_tokens=False).replace("▁", " ").strip()
        said = talk[index].content.replace("▁", " ").strip()
        assert text == said or (row.prompt_differs and text in said)

    # The prompts that chat would send.
    leads = []
    for index in trained:
        prompt = template.encode_prompt(tokenizer, talk[:index])
        leads.append(ids[: len(prompt)] == prompt)
        if leads[-1]:
            assert labels[len(prompt)] != -100
            assert not len(prompt) or labels[len(prompt) - 1] == -100
    assert row.prompt_differs == (not all(leads))

    # Control tokens are those of the same turns with harmless contents, in the same order, learned alike.
    harmless = tuple(Message(message.role, "x", message.trained) for message in talk)
    plain = encode_talk(encoder, harmless).samples[0]
    spellings = special_spellings(tokenizer) | set(BUILTIN_TEMPLATES[template_name].control_tokens)
    controls = {tokenizer.convert_tokens_to_ids(spelling) for spelling in spellings} - {
        tokenizer.unk_token_id
    }

    def written(sample) -> list[tuple[int, int]]:
        pairs = zip(sample.input_ids, sample.labels, strict=True)
        return [(token, label) for token, label in pairs if token in controls]

    assert written(sample) == written(plain)


_HEAD = "<|im_start|>{{ m.role }}\n"
_TAIL = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# A tokenizer's own templates: none marks what is learned, and each does something else to contents.
OWN = {
    "plain": "{% for m in messages %}" + _HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}" + _TAIL,
    "trims": "{% for m in messages %}" + _HEAD + "{{ m.content | trim }}<|im_end|>\n{% endfor %}" + _TAIL,
    "drops earlier thinking": (
        "{% for m in messages %}" + _HEAD + "{% if m.role == 'assistant' and '</think>' in m.content"
        " and not loop.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + _TAIL
    ),
    "looks for a word": (
        "{% for m in messages %}"
        + _HEAD
        + "{% if 'river' in m.content and m.role == 'user' %}(wet) {% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + _TAIL
    ),
    "opens answers with a thought": (
        "{% for m in messages %}" + _HEAD + "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + _TAIL
    ),
    "ends with the last answer": (
        "{% for m in messages %}" + _HEAD + "{{ m.content }}<|im_end|>{% if not loop.last %}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def bind_own(tokenizers, tmp_path_factory):
    """Encoder, template and tokenizer for each of OWN, read from .jinja files."""
    folder, tokenizer = tmp_path_factory.mktemp("own"), tokenizers["bpe"]
    bound = {}
    for name, source in OWN.items():
        path = folder / f"{name}.jinja"
        path.write_text(source, encoding="utf-8")
        template = get_template(str(path), tokenizer)
        bound[name] = RowEncoder(tokenizer, template, EncodeOptions(SFT)), template, tokenizer
    return bound.__getitem__


@PROFILE
@given(conversations(), st.sampled_from(list(OWN)))
def test_templates_without_marks_render_as_transformers_does(bind_own, talk, name):
    encoder, template, tokenizer = bind_own(name)
    trained = [index for index, message in enumerate(talk) if message.role == "assistant" and message.trained]
    assume(trained)
    kept = talk[: trained[-1] + 1]
    row = encode_talk(encoder, talk)
    (sample,) = row.samples
    dicts = [{"role": message.role, "content": message.content} for message in kept]
    rendered = tokenizer.apply_chat_template(dicts, chat_template=template.source, tokenize=False)
    assert sample.text == rendered
    assert tokenizer.decode(sample.input_ids) == rendered
    learned = stretches(sample.labels)
    assert len(learned) == len(trained)
    for stretch, index in zip(learned, trained, strict=True):
        text = tokenizer.decode(stretch)
        assert text.endswith("<|im_end|>")
        said = talk[index].content.split("</think>")[-1].strip()
        shown = text.removesuffix("<|im_end|>").strip()
        assert said in shown or (row.prompt_differs and shown in said)
        assert "<|im_start|>" not in text or "<|im_start|>" in talk[index].content


@PROFILE
@given(st.lists(conversations(), min_size=1, max_size=4), st.sampled_from(sorted(BUILTIN_TEMPLATES)))
def test_rows_do_not_depend_on_their_neighbours(bind, talks, template_name):
    encoder, _, _ = bind(template_name, "bpe")
    together = encode(encoder, [Row(talk, None) for index, talk in enumerate(talks)])
    alone = [encode(encoder, [Row(talk, None)])[0] for index, talk in enumerate(talks)]
    assert together == alone
