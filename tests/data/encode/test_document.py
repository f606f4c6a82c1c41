"""Documents for pretraining: eos at the end, windows that lose nothing, BOS as the tokenizer has it."""

from __future__ import annotations

import json

import pytest
from encoded import encode
from tokenizers import Tokenizer
from tokenizers.normalizers import Strip
from transformers import PreTrainedTokenizerFast

from pyft.config.modes import PRETRAIN
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodedRow, EncodeOptions
from pyft.data.rows.row import Message, Row


@pytest.fixture(params=["bpe", "bpe_with_bos", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def encode_documents(tokenizer, rows, max_length=None, overlong="split") -> list[EncodedRow]:
    return encode(RowEncoder(tokenizer, None, EncodeOptions(PRETRAIN, max_length, overlong)), rows)


def test_documents_end_with_eos_and_lose_no_token_in_windows(tokenizer):
    texts = ["short", "the river runs deep 珠穆朗玛峰 😀 " * 20, "a </s> and <|endoftext|> b", "x" * 33]
    rows = [Row(None, text) for text in texts]
    whole = encode_documents(tokenizer, rows)
    for length in (2, 3, 7, 16):
        for row, one in zip(encode_documents(tokenizer, rows, length), whole, strict=True):
            assert [token for sample in row.samples for token in sample.input_ids] == one.samples[0].input_ids
            assert "".join(sample.text for sample in row.samples) == one.samples[0].text
            assert row.num_tokens == one.num_tokens == len(one.samples[0].input_ids)
            assert (row.tokens_cut, row.dropped) == (0, None)
            sizes = [len(sample.input_ids) for sample in row.samples]
            assert max(sizes) == row.longest <= length
            assert length == 2 or len(sizes) == 1 or min(sizes) > 1
            assert all(sample.labels == sample.input_ids for sample in row.samples)
    for text, row in zip(texts, whole, strict=True):
        ids = row.samples[0].input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
        assert row.samples[0].text == text + tokenizer.eos_token
        assert tokenizer.decode(ids, skip_special_tokens=False) == row.samples[0].text


def test_documents_begin_as_the_tokenizer_begins_texts(tmp_path, bpe_with_bos):
    description = json.loads(bpe_with_bos.backend_tokenizer.to_str())
    bos_id = bpe_with_bos.bos_token_id
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos_id], "tokens": ["<s>"]}},
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token="<s>",
        eos_token="<|endoftext|>",
    )
    (row,) = encode_documents(tokenizer, [Row(None, "the river")])
    assert row.samples[0].input_ids == [*tokenizer("the river")["input_ids"], tokenizer.eos_token_id]
    assert row.samples[0].input_ids[0] == bos_id
    assert row.samples[0].text == "<s>the river<|endoftext|>"


def test_texts_without_a_question_are_documents_and_conversations_are_not(bpe):
    rows = [
        Row((Message("assistant", "a text"),), None),
        Row((Message("user", "q"), Message("assistant", "a")), None),
        Row((Message("assistant", "one"), Message("assistant", "two")), None),
    ]
    one, conversation, two = encode_documents(bpe, rows)
    assert one.samples[0].text == "a text<|endoftext|>"
    assert conversation.error.startswith("mode pretrain reads plain texts, but this row is a conversation")
    assert two.samples[0].text == "one\ntwo<|endoftext|>"


def test_documents_longer_than_max_length(tokenizer):
    text = "the river runs deep 珠穆朗玛峰 😀 " * 5
    row = Row(None, text)
    (whole,) = encode_documents(tokenizer, [row])
    length = whole.num_tokens
    for overlong in ("drop", "truncate", "split", "error"):
        assert encode_documents(tokenizer, [row], length, overlong) == [whole]
    (dropped,) = encode_documents(tokenizer, [row], length - 1, "drop")
    assert (dropped.samples, dropped.dropped, dropped.tokens_cut) == ((), "overlong", length)
    (refused,) = encode_documents(tokenizer, [row], length - 1, "error")
    assert refused.error.startswith(f"the row has {length} tokens, more than data.max_length {length - 1}")
    (truncated,) = encode_documents(tokenizer, [row], 20, "truncate")
    (sample,) = truncated.samples
    assert sample.input_ids == sample.labels == whole.samples[0].input_ids[:20]
    assert tokenizer.eos_token_id not in sample.input_ids
    assert sample.text + truncated.cut_text == whole.samples[0].text
    assert (truncated.num_tokens, truncated.tokens_cut) == (length, length - 20)


def test_a_text_that_has_no_tokens_teaches_nothing(bpe):
    backend = Tokenizer.from_str(bpe.backend_tokenizer.to_str())
    backend.normalizer = Strip()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    (row,) = encode_documents(tokenizer, [Row(None, " ")])
    assert (row.samples, row.dropped, row.num_tokens, row.tokens_cut) == ((), "no_trained_tokens", 1, 1)


def test_ready_made_ids_are_cut_into_windows_too(bpe):
    labels = [5] * 4 + [-100] * 4 + [5] * 3
    (row,) = encode_documents(bpe, [Row(None, None, tokens=([5] * 11, labels))], 4)
    # The window in which nothing is learned is left out, and counted.
    assert [sample.labels for sample in row.samples] == [[5] * 4, [5] * 3]
    assert (row.num_tokens, row.tokens_cut, row.dropped) == (11, 4, None)
