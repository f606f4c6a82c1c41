"""The cheap check of prompts says what encoding every prompt whole would say, whatever the tokenizer."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece

from pyft.data.encode import prompt_check
from pyft.data.encode.prompt_check import PromptCheck
from pyft.data.tokenizers.load import load_tokenizer
from pyft.data.tokenizers.text import SpelledText, encode_all
from pyft.data.tokenizers.view import TokenizerView

MARKS = ("<a>", "<a><b>", "<b>", "</s>", "<s>", "<a>\n")
PIECES = (
    *MARKS,
    *("<a>", "<b>", "</s>") * 2,
    *(" ", "  ", "\n", "\n\n", "\t", "a", "b", "the", " river", "Deep", "DEEP ", ":", ": ", "|>", "<", ">"),
    *("<a", "b>", "42", ".", "峰", "珠穆", "😀", "e\u0301", "ﬁ", "\u00a0", "İ", "\u0301"),
)
METASPACE = {"replacement": "▁", "split": False}


def make_view(backend: Tokenizer) -> TokenizerView:
    added = backend.get_added_tokens_decoder()
    return TokenizerView(
        backend, {"eos_token": "</s>"}, {token.content: id_ for id_, token in added.items()}, added
    )


def train(model, normalizer, pre_tokenizer, corpus, marks=MARKS, **options) -> TokenizerView:
    """Train a tokenizer; `marks` are texts or AddedTokens."""
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    trainer_class = {
        BPE: trainers.BpeTrainer,
        Unigram: trainers.UnigramTrainer,
        WordPiece: trainers.WordPieceTrainer,
    }
    # For words and pieces the unknown token is a control token, as it is in some tokenizers.
    options = {"special_tokens": ["</s>" if isinstance(model, WordPiece) else "<unk>"]} | options
    lines = [*corpus, *("<a>: the\n\n<b> river|>: 42\n" * 3 for _ in range(20))]
    backend.train_from_iterator(
        lines, trainer_class[type(model)](vocab_size=400, show_progress=False, **options)
    )
    backend.add_tokens(
        [
            mark if isinstance(mark, AddedToken) else AddedToken(mark, normalized=False, special=True)
            for mark in marks
        ]
    )
    return make_view(backend)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)


def marks_with(**flags):
    return [AddedToken(mark, special=True, **{"normalized": False} | flags) for mark in MARKS]


LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def metaspace(scheme):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, **METASPACE)


KINDS = {
    "byte-level": lambda c: train(BPE(), None, byte_level(), c, **BYTES),
    "byte-level, blanks joined to what follows": lambda c: train(
        BPE(), None, byte_level(use_regex=False), c, **BYTES
    ),
    "byte-level, blank before every stretch": lambda c: train(
        BPE(), None, byte_level(add_prefix_space=True), c, **BYTES
    ),
    "byte-level, NFC": lambda c: train(BPE(), normalizers.NFC(), byte_level(), c, **BYTES),
    "marks that take in blanks before": lambda c: train(
        BPE(), None, byte_level(), c, marks_with(lstrip=True), **BYTES
    ),
    "marks that take in blanks after": lambda c: train(
        BPE(), None, byte_level(), c, marks_with(rstrip=True), **BYTES
    ),
    "marks that take in blanks on both sides": lambda c: train(
        BPE(unk_token="<unk>"), None, metaspace("first"), c, marks_with(lstrip=True, rstrip=True)
    ),
    "marks between words only": lambda c: train(
        BPE(), None, byte_level(), c, [*marks_with()[1:], AddedToken("<a>", single_word=True)], **BYTES
    ),
    "normalized marks": lambda c: train(
        BPE(), normalizers.Lowercase(), byte_level(), c, marks_with(normalized=True), **BYTES
    ),
    "some normalized marks": lambda c: train(
        BPE(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()]),
        byte_level(),
        c,
        [*marks_with()[:3], *marks_with(normalized=True)[3:]],
        **BYTES,
    ),
    "normalizer that looks around": lambda c: train(
        BPE(),
        normalizers.Sequence([normalizers.Replace(Regex(r"\A[a ]+|[>: ]+\z"), ""), normalizers.Lowercase()]),
        byte_level(),
        c,
        [*marks_with(normalized=True)[:3], *marks_with()[3:]],
        **BYTES,
    ),
    "Llama's normalizer": lambda c: train(BPE(unk_token="<unk>", fuse_unk=True), LLAMA, None, c),
    "Llama's normalizer, normalized marks": lambda c: train(
        BPE(unk_token="<unk>", fuse_unk=True), LLAMA, None, c, marks_with(normalized=True)
    ),
    "blank at the start": lambda c: train(BPE(unk_token="<unk>"), None, metaspace("first"), c),
    "blank before every stretch": lambda c: train(BPE(unk_token="<unk>"), None, metaspace("always"), c),
    "unigram, blank at the start": lambda c: train(Unigram(), None, metaspace("first"), c, unk_token="<unk>"),
    "unigram, words": lambda c: train(
        Unigram(),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
        c,
        unk_token="<unk>",
    ),
    "words and pieces": lambda c: train(
        WordPiece(unk_token="</s>"), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), c
    ),
}
SPM_KINDS = {
    "sentencepiece": {},
    "sentencepiece, dummy prefix": {"add_dummy_prefix": True},
    "sentencepiece, blanks joined": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "sentencepiece, nfkc": {"normalization_rule_name": "nfkc", "add_dummy_prefix": True},
    "sentencepiece unigram": {"model_type": "unigram", "vocab_size": 330, "add_dummy_prefix": True},
    "sentencepiece unigram, blanks joined": {
        "model_type": "unigram",
        "vocab_size": 80,
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "byte_fallback": False,
    },
}
# No control token of theirs can be relied on: every prompt is encoded whole.
WHOLE = ("marks between words only", "normalized marks", "Llama's normalizer, normalized marks")


def random_text(rng: random.Random, marks: list[str]) -> tuple[SpelledText, list[int]]:
    """A text in which some spelled control tokens are literals, and where prompts in it may end."""
    text, literals, ends = "", [], []
    for _ in range(rng.randint(1, 30)):
        piece = rng.choice(PIECES)
        if piece in marks and rng.random() < 0.25:
            literals.append((len(text), len(text) + len(piece)))
        text += piece
        ends.append(rng.choice([len(text), rng.randint(0, len(text))]))
    return SpelledText(text, tuple(literals)), sorted(set(ends))


@pytest.fixture(scope="module", params=[*KINDS, *SPM_KINDS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def view(kind, corpus, make_spm):
    if kind in KINDS:
        return KINDS[kind](corpus)
    symbols = [mark for mark in MARKS if mark not in ("<s>", "</s>", "<a>\n")]
    path = make_spm("model", user_defined_symbols=symbols, **SPM_KINDS[kind])
    return TokenizerView.from_tokenizer(load_tokenizer(str(path)))


def test_first_token_at_a_character(kind, view):
    rng = random.Random(kind)
    for _ in range(30):
        (text, _) = random_text(rng, [])
        (row,) = encode_all(view, [text], frozenset(MARKS))
        starts = [row.characters(index)[0] for index in range(len(row.ids))]
        for character in range(len(text.text) + 1):
            assert row.first_at(character) == bisect_left(starts, character)


def test_says_what_whole_prompts_say(kind, view, monkeypatch):
    rng = random.Random(kind)
    marks = [mark for mark in MARKS if mark in view.added_tokens_encoder]
    controls = frozenset(marks)
    encoded_by_check: list[SpelledText] = []

    def record(tokenizer, texts, control_tokens):
        encoded_by_check.extend(texts)
        return encode_all(tokenizer, texts, control_tokens)

    monkeypatch.setattr(prompt_check, "encode_all", record)
    check = PromptCheck(view, controls)
    num_equal = num_different = num_characters = 0
    for _ in range(100):
        text, ends = random_text(rng, marks)
        (row,) = encode_all(view, [text], controls)
        prompts = [text.between(0, end) for end in ends]
        expected = []
        for prompt, whole in zip(prompts, encode_all(view, prompts, controls), strict=True):
            leads = row.ids[: len(whole.ids)] == whole.ids
            expected.append(len(whole.ids) if leads else None)
            num_characters += len(prompt.text)
        assert check.count_leading([(text, row, end) for end in ends]) == expected, text
        num_equal += sum(number is not None for number in expected)
        num_different += sum(number is None for number in expected)
    assert num_equal > 200 and num_different > 20, "or the test shows little"
    ratio = sum(len(text.text) for text in encoded_by_check) / num_characters
    assert ratio > 0.8 if kind in WHOLE else ratio < 0.7, ratio
