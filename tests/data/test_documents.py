"""Documents for pretraining: eos at the end, windows that lose nothing, BOS as the tokenizer has it."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pyft.config import DataError
from pyft.data.documents import encode_documents
from pyft.data.formats import Message, Row


@pytest.fixture(params=["bpe", "bpe_with_bos", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_documents_end_with_eos_and_lose_no_token_in_windows(tokenizer):
    texts = ["short", "the river runs deep 珠穆朗玛峰 😀 " * 20, "a </s> and <|endoftext|> b", "x" * 33]
    rows = [Row(None, text, f"f:{number}") for number, text in enumerate(texts, start=1)]
    whole = list(encode_documents(tokenizer, rows, None))
    for length in (2, 3, 7, 16):
        for row, one in zip(encode_documents(tokenizer, rows, length), whole, strict=True):
            assert [token for sample in row.samples for token in sample.input_ids] == one.samples[0].input_ids
            assert "".join(sample.text for sample in row.samples) == one.samples[0].text
            sizes = [len(sample.input_ids) for sample in row.samples]
            assert max(sizes) <= length
            assert length == 2 or len(sizes) == 1 or min(sizes) > 1
            assert all(sample.labels == sample.input_ids for sample in row.samples)
            assert {sample.source for sample in row.samples} == {one.samples[0].source}
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
    (row,) = encode_documents(tokenizer, [Row(None, "the river", "f:1")], None)
    assert row.samples[0].input_ids == [*tokenizer("the river")["input_ids"], tokenizer.eos_token_id]
    assert row.samples[0].input_ids[0] == bos_id
    assert row.samples[0].text == "<s>the river<|endoftext|>"


def test_texts_without_a_question_are_documents_and_conversations_are_not(bpe):
    answer = Row((Message("assistant", "a text"),), None, "f:1")
    assert next(encode_documents(bpe, [answer], None)).samples[0].text == "a text<|endoftext|>"
    with pytest.raises(DataError, match="f:2: mode pretrain reads plain texts, this row is a conversation"):
        list(
            encode_documents(bpe, [Row((Message("user", "q"), Message("assistant", "a")), None, "f:2")], None)
        )
