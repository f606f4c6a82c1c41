"""Ids of texts in which some control tokens are only spelled; borders between characters and tokens."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from pyft.data.tokenizers.load import load_tokenizer
from pyft.data.tokenizers.text import SpelledText, encode_all
from pyft.data.tokenizers.view import TokenizerView

PIECES = (
    " ",
    "  ",
    "\n",
    "the",
    " river",
    "Deep",
    "峰",
    "😀",
    "e\u0301",
    ":",
    "42",
    "<eoa>",
    "<eoh>",
    "\u00a0",
)


@pytest.fixture(params=["bpe", "bpe_with_bos", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def joining(make_spm):
    return load_tokenizer(str(make_spm("joining", add_dummy_prefix=True, remove_extra_whitespaces=True)))


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 15))) for _ in range(count)]


def test_first_token_at_a_character(tokenizer, joining):
    for text in random_texts(60):
        for tok in (tokenizer, joining):
            (encoded,) = encode_all(tok, [SpelledText(text)], frozenset())
            starts = [encoded.characters(index)[0] for index in range(len(encoded.ids))]
            assert starts == sorted(starts)
            for character in range(len(text) + 1):
                assert encoded.first_at(character) == bisect_left(starts, character)


def test_every_character_belongs_to_a_token(tokenizer):
    """Also blanks, which some tokenizers leave out of the offsets they report."""
    for text in random_texts(60):
        (encoded,) = encode_all(tokenizer, [SpelledText(text)], frozenset())
        spans = [encoded.characters(index) for index in range(len(encoded.ids))]
        assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))


def test_ids_without_literals_are_the_tokenizers_own(tokenizer, joining):
    for tok in (tokenizer, joining):
        texts = random_texts(60)
        encoded = encode_all(tok, [SpelledText(text) for text in texts], frozenset({"<eoa>"}))
        own = [tok(text, add_special_tokens=False)["input_ids"] for text in texts]
        assert [one.ids for one in encoded] == own


def test_settings_left_in_a_tokenizer_do_not_change_ids(bpe_folder):
    tokenizer = load_tokenizer(str(bpe_folder))
    expected = encode_all(tokenizer, [SpelledText("the river <eoa>")], frozenset())[0].ids
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert encode_all(tokenizer, [SpelledText("the river <eoa>")], frozenset())[0].ids == expected


def test_ids_outside_the_stretch_are_those_of_the_whole_text(tokenizer):
    controls = frozenset({"<eoa>", "<eoh>"})
    added = {tokenizer.added_tokens_encoder[token] for token in controls}
    rng = random.Random(0)
    for text in random_texts(100):
        places = [(i, i + 5) for i in range(len(text)) if text[i : i + 5] in controls]
        literals = tuple(place for place in places if rng.random() < 0.5)
        whole, spelled = encode_all(tokenizer, [SpelledText(text), SpelledText(text, literals)], controls)
        assert sum(token in added for token in spelled.ids) == len(places) - len(literals)
        assert tokenizer.decode(spelled.ids) == tokenizer.decode(whole.ids)
        written = [place[0] for place in places if place not in literals]
        for start, end in zip([0, *written], [*written, len(text)], strict=True):
            if any(start <= literal[0] < end for literal in literals):
                continue
            here = [one.ids[one.first_at(start) : one.first_at(end)] for one in (whole, spelled)]
            assert here[0] == here[1]


def make_view(backend: Tokenizer) -> TokenizerView:
    added = backend.get_added_tokens_decoder()
    return TokenizerView(backend, {}, {token.content: id_ for id_, token in added.items()}, added)


def test_an_unknown_character_is_no_control_token():
    """Its id is an added token's, but the stretch to encode again does not end there."""
    letters = ["<unk>", "▁", *"abcdefinost|<>x", "▁a", "▁ab"]
    backend = Tokenizer(
        BPE({text: i for i, text in enumerate(letters)}, [("▁", "a"), ("▁a", "b")], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Prepend("▁")
    for mark in ("<unk>", "<e>"):
        backend.add_special_tokens([AddedToken(mark, normalized=False)])
    view = make_view(backend)
    (encoded,) = encode_all(view, [SpelledText("峰ab<e>", ((3, 6),))], frozenset({"<e>"}))
    tokens = [backend.id_to_token(token) for token in encoded.ids]
    # After the unknown character there is no second blank.
    assert tokens == ["▁", "<unk>", "a", "b", "<", "e", ">"]


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_no_blank_where_a_spelling_is_cut(scheme):
    """The vocabulary of a unigram model holds the spelling, so it is cut, but nothing is put in between."""
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("<e>", -1.0), *((c, -2.0) for c in "ab<e>")]
    backend = Tokenizer(Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.add_special_tokens([AddedToken("<e>", normalized=False)])
    view = make_view(backend)
    (encoded,) = encode_all(view, [SpelledText("a<e>b", ((1, 4),))], frozenset({"<e>"}))
    assert [backend.id_to_token(token) for token in encoded.ids] == ["▁", "a", "<", "e", ">", "b"]
