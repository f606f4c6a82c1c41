"""A view has what its tokenizer has, also in another process, which then needs no transformers."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from pyft.config.modes import SFT
from pyft.data.chat.bind import get_template
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.rows.row import Message, Row
from pyft.data.tokenizers.load import load_tokenizer
from pyft.data.tokenizers.view import TokenizerView


@pytest.fixture(params=["bpe", "bpe_with_bos", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_a_view_has_what_its_tokenizer_has(tokenizer):
    view = TokenizerView.from_tokenizer(tokenizer)
    for seen in (view, pickle.loads(pickle.dumps(view))):
        names = ("special_tokens_map", "added_tokens_encoder", "bos_token", "bos_token_id", "eos_token")
        for name in (*names, "eos_token_id"):
            assert getattr(seen, name) == getattr(tokenizer, name), name
        assert len(seen) == len(tokenizer)
        assert {id_: str(token) for id_, token in seen.added_tokens_decoder.items()} == {
            id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()
        }
        for token in ("<eoa>", "a", "not a token"):
            assert seen.convert_tokens_to_ids(token) == tokenizer.convert_tokens_to_ids(token)
        text = "the river 峰 <eoa>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert seen.backend_tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert TokenizerView.from_tokenizer(view) is view


def test_chat_templates(bpe):
    def view_with(chat_template):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
        tokenizer.chat_template = chat_template
        return TokenizerView.from_tokenizer(tokenizer)

    assert view_with("{{ 1 }}").chat_template == view_with("{{ 1 }}").get_chat_template() == "{{ 1 }}"
    assert view_with({"default": "{{ 2 }}", "tool_use": "{{ 3 }}"}).chat_template == "{{ 2 }}"
    for none in (view_with(None), view_with({"rag": "{{ 3 }}"})):
        assert none.chat_template is None
        with pytest.raises(ValueError, match="no chat template"):
            none.get_chat_template()


WORKER = """
import pickle, sys
encoder, rows = pickle.load(open(sys.argv[1], "rb"))
print([[(s.input_ids, s.labels) for s in row.samples] for row in encoder.encode(rows)])
heavy = {"transformers", "torch", "datasets", "sentencepiece"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_an_encoder_works_in_a_process_without_transformers(bpe_folder, tmp_path):
    tokenizer = load_tokenizer(str(bpe_folder))
    rows = [
        Row((Message("user", f"the river {n}"), Message("assistant", "<|im_end|> 峰")), None)
        for n in range(3)
    ]
    encoder = RowEncoder(tokenizer, get_template("chatml", tokenizer), EncodeOptions(SFT))
    expected = [[(s.input_ids, s.labels) for s in row.samples] for row in encoder.encode(rows)]
    (tmp_path / "encoder").write_bytes(pickle.dumps((encoder, rows)))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "encoder")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"{expected}\n"), result.stderr
