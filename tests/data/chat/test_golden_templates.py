"""Every shipped template with every kind of tokenizer: what is learned is what chat will have to be answered.

Nothing here looks at spans or marks: labels are told from the prompts that chat would send and from where an
answer stops, and held against the tokenizer's own rendering of the same template.
"""

from __future__ import annotations

import pytest
from encoded import encode_conversation

from pyft.data.chat.bind import get_template
from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.rows.row import Message
from pyft.data.tokenizers.text import special_spellings

ANSWERS = ("It is the river.", "珠穆朗玛峰,\nthen  42 metres", "def f(x): return x 😀")
QUESTIONS = ("Who runs  deep?", "世界上\n第一高峰?\n", "[a] function, please: f(x)")
SYSTEM = Message("system", "Answer in one line.")


def make_talk(
    *, system: bool, answers: tuple[str, ...] = ANSWERS, before: str = "", after: str = ""
) -> list[Message]:
    turns = [SYSTEM] if system else []
    for question, answer in zip(QUESTIONS, answers, strict=True):
        turns += [Message("user", before + question + after), Message("assistant", before + answer)]
    return turns


@pytest.fixture(params=sorted(BUILTIN_TEMPLATES))
def bound(request, tokenizers, tokenizer_name):
    """A template, and the tokenizer it is bound to."""
    tokenizer = tokenizers[tokenizer_name]
    return get_template(request.param, tokenizer), tokenizer


def find_stretches(labels: list[int]) -> list[tuple[int, int]]:
    learned = [label != -100 for label in labels]
    starts = [i for i, now in enumerate(learned) if now and (i == 0 or not learned[i - 1])]
    ends = [i + 1 for i, now in enumerate(learned) if now and (i + 1 == len(learned) or not learned[i + 1])]
    return list(zip(starts, ends, strict=True))


@pytest.mark.parametrize("system", [True, False])
def test_what_is_learned_is_what_chat_has_to_be_answered(bound, system):
    template, tokenizer = bound
    talk = make_talk(system=system)
    sample = encode_conversation(tokenizer, template, talk)
    ids, stops = sample.input_ids, template.stop_token_ids(tokenizer)
    labels = [-100] * len(ids)
    for index, message in enumerate(talk):
        if message.role != "assistant":
            continue
        prompt = template.encode_prompt(tokenizer, talk[:index])
        assert ids[: len(prompt)] == prompt
        end = next(i for i in range(len(prompt), len(ids)) if ids[i] in stops) + 1
        labels[len(prompt) : end] = ids[len(prompt) : end]
        spoken = tokenizer.decode(ids[len(prompt) : end - 1], skip_special_tokens=False)
        assert spoken.strip() == message.content
    assert sample.labels == labels
    assert len(find_stretches(labels)) == len(ANSWERS)


@pytest.mark.parametrize("system", [True, False])
def test_ids_are_those_of_the_rendered_text(bound, system):
    template, tokenizer = bound
    talk = make_talk(system=system)
    sample = encode_conversation(tokenizer, template, talk)
    dicts = [{"role": message.role, "content": message.content} for message in talk]
    rendered = tokenizer.apply_chat_template(dicts, chat_template=template.source, tokenize=False)
    # What comes after the last answer is not kept where nothing in it is learned.
    assert rendered.startswith(sample.text) and not rendered[len(sample.text) :].strip()
    assert sample.input_ids == tokenizer(sample.text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token is not None:
        assert sample.input_ids.count(tokenizer.bos_token_id) == 1
        assert sample.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in sample.input_ids


def test_spelled_control_tokens_are_text(bound):
    template, tokenizer = bound
    spelled = "".join(
        sorted(special_spellings(tokenizer) | set(BUILTIN_TEMPLATES[template.name].control_tokens))
    )
    harmless = encode_conversation(tokenizer, template, make_talk(system=True))
    # In the middle, and at both ends, where they stand beside control tokens that the template wrote.
    hostile = make_talk(system=True, before=f"{spelled} x {spelled}", after=spelled)
    sample = encode_conversation(tokenizer, template, hostile)
    controls = set(tokenizer.all_special_ids) | {
        tokenizer.convert_tokens_to_ids(token) for token in BUILTIN_TEMPLATES[template.name].control_tokens
    }

    def written(ids: list[int]) -> list[int]:
        return [token for token in ids if token in controls]

    assert written(sample.input_ids) == written(harmless.input_ids)
    assert written(sample.labels) == written(harmless.labels)
    for (start, end), message in zip(find_stretches(sample.labels), hostile[2::2], strict=True):
        spoken = tokenizer.decode(sample.input_ids[start : end - 1], skip_special_tokens=False)
        # "▁", which DeepSeek's control tokens have, is how sentencepiece writes a blank, and so reads one.
        assert spoken.replace("▁", " ").strip() == message.content.replace("▁", " ").strip()
    for index in (2, 4, 6):
        prompt = template.encode_prompt(tokenizer, hostile[:index])
        assert sample.input_ids[: len(prompt)] == prompt


def test_marks_say_the_same_to_transformers(bound):
    template, tokenizer = bound
    if not template.has_marks:
        pytest.skip("the template has no marks")
    talk = make_talk(system=True)
    sample = encode_conversation(tokenizer, template, talk)
    theirs = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in talk],
        chat_template=template.source,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    count = len(sample.input_ids)
    assert theirs["input_ids"][:count] == sample.input_ids
    masks = theirs["assistant_masks"]
    assert masks[:count] == [int(label != -100) for label in sample.labels] and not any(masks[count:])
