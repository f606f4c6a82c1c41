"""Tokenizers: sentencepiece's own ids, building, loading, and everything that cannot be loaded."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers.models import BPE
from transformers import AutoTokenizer

from pyft.data.tokenizers import sentencepiece as spm_module
from pyft.data.tokenizers.load import build_tokenizer, load_tokenizer
from pyft.data.tokenizers.sentencepiece import PROBE_TEXTS
from pyft.errors import ConfigError

KINDS = {
    "no prefix": {},
    "dummy prefix": {"add_dummy_prefix": True},
    "dummy prefix, blanks joined": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "vocab_size": 330, "add_dummy_prefix": True},
    "nfkc": {"normalization_rule_name": "nfkc", "add_dummy_prefix": True},
    "runs of blanks": {"user_defined_symbols": ["▁▁", "▁▁▁▁", "<eoh>"], "add_dummy_prefix": True},
}


def make_texts() -> list[str]:
    rng = random.Random(0)
    pieces = [
        " ",
        "  ",
        "    ",
        "\n",
        "\t",
        "a",
        "the ",
        "river",
        "峰",
        "世界",
        "😀",
        "é",
        "42",
        ".",
        "def f(x):",
    ]
    return [*PROBE_TEXTS, *("".join(rng.choices(pieces, k=rng.randint(1, 20))) for _ in range(300))]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_sentencepieces_own(make_spm, tmp_path, kind, capfd):
    path = make_spm("model", **KINDS[kind])
    tokenizer = load_tokenizer(str(path))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert len(tokenizer) == processor.vocab_size()
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in make_texts():
        expected = processor.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, repr(text)
        assert saved(text, add_special_tokens=False)["input_ids"] == expected, repr(text)
        assert tokenizer.decode(expected) == processor.decode(expected)
    assert capfd.readouterr().err == ""


def test_merges_are_ranked_by_score_not_by_place(make_spm, tmp_path):
    """As in Llama 2's file, whose runs of blanks stand in another order than their scores."""
    proto = sentencepiece_model_pb2.ModelProto()
    rng = random.Random(0)
    texts = ["".join(rng.choices("aabc ", k=40)) for _ in range(400)]
    proto.ParseFromString(make_spm("model", lines=texts).read_bytes())
    places = [index for index, piece in enumerate(proto.pieces) if piece.type == proto.pieces[index].NORMAL]
    turned = [(proto.pieces[index].piece, proto.pieces[index].score) for index in reversed(places)]
    for index, (text, score) in zip(places, turned, strict=True):
        proto.pieces[index].piece, proto.pieces[index].score = text, score
    path = tmp_path / "turned.model"
    path.write_bytes(proto.SerializeToString())
    tokenizer, processor = (
        load_tokenizer(str(path)),
        sentencepiece.SentencePieceProcessor(model_file=str(path)),
    )
    for text in [*make_texts(), *texts]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


def test_special_pieces_come_from_the_model(make_spm):
    path = make_spm(
        "model", bos_id=5, eos_id=6, pad_id=7, unk_id=0, bos_piece="[B]", eos_piece="[E]", pad_piece="[P]"
    )
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("[B]", "[E]", "[P]")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 6, 7)
    tokenizer = load_tokenizer(str(make_spm("other", bos_id=-1)))
    assert tokenizer.bos_token is None
    assert tokenizer.convert_ids_to_tokens(tokenizer("<eoh>x<eoa>")["input_ids"]) == ["<eoh>", "x", "<eoa>"]


def test_one_warning_line_where_ids_differ(spm_file, monkeypatch, capfd):
    monkeypatch.setattr(spm_module, "_make_bpe", make_bpe_without_merges)
    load_tokenizer(str(spm_file))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {spm_file}: ids differ from sentencepiece's own in ")


def make_bpe_without_merges(proto) -> BPE:
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    return BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)


def test_folder_with_a_model_alone(spm_file, tmp_path):
    shutil.copy(spm_file, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("the river")["input_ids"] == load_tokenizer(str(spm_file))("the river")["input_ids"]


def test_folder_with_a_model_and_settings(spm_file, tmp_path):
    shutil.copy(spm_file, tmp_path / "tokenizer.model")
    vocab_size = len(load_tokenizer(str(spm_file)))
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": {"content": "<|done|>"},
        "bos_token": None,
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {str(vocab_size): {"content": "<|done|>", "special": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|done|>", vocab_size)
    assert tokenizer.bos_token is None
    assert tokenizer.chat_template == "{{ messages }}"
    config["added_tokens_decoder"] = {str(vocab_size + 5): {"content": "<|done|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"gives '<\|done\|>' the id"):
        load_tokenizer(str(tmp_path))


def test_built_tokenizer_is_an_ordinary_folder(corpus, tmp_path):
    tokenizer = build_tokenizer(corpus, vocab_size=500, control_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.save_pretrained(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer) <= 500
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)
    for text in make_texts():
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert loaded.decode(ids) == text
    assert len(loaded("<|im_end|>")["input_ids"]) == 1
    assert load_tokenizer(str(tmp_path))("the river")["input_ids"] == loaded("the river")["input_ids"]


def test_chinese_characters_and_digits_stand_alone(corpus):
    tokenizer = build_tokenizer(corpus, vocab_size=2000)
    tokens = tokenizer("世界上第一高峰")["input_ids"]
    assert [tokenizer.decode([token]) for token in tokens] == list("世界上第一高峰")
    assert [tokenizer.decode([token]) for token in tokenizer("4242")["input_ids"]] == list("4242")
    assert len(tokenizer(" mountain")["input_ids"]) == 1


def test_building_is_deterministic(corpus, tmp_path):
    script = (
        "import sys\n"
        "from pyft.data.tokenizers.load import build_tokenizer\n"
        "texts = open(sys.argv[1], encoding='utf-8').read().split('\\n')\n"
        "sys.stdout.write(build_tokenizer(texts, vocab_size=500).backend_tokenizer.to_str())\n"
    )
    (tmp_path / "corpus").write_text("\n".join(corpus), encoding="utf-8")
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "corpus"], capture_output=True, check=True)
    assert run.stdout.decode() == build_tokenizer(corpus, vocab_size=500).backend_tokenizer.to_str()


def test_too_small_a_vocabulary(corpus):
    with pytest.raises(
        ConfigError, match="256 has no room for 256 bytes and 3 special tokens: write at least 259"
    ):
        build_tokenizer(corpus, vocab_size=256, control_tokens=["<a>", "<b>"])


def fail(path, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(path), **options)
    assert caught.value.exit_code == 2
    (message,) = caught.value.messages
    assert "\n" not in message
    return message


def test_what_cannot_be_loaded(tmp_path):
    assert "does not exist" in fail(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no tokenizer can be loaded from" in fail(tmp_path / "empty")
    (tmp_path / "broken.model").write_bytes(b"no model")
    assert "is not a sentencepiece model" in fail(tmp_path / "broken.model")
    (tmp_path / "empty.model").write_bytes(b"")
    assert "is not a sentencepiece model" in fail(tmp_path / "empty.model")
    (tmp_path / "a.txt").write_text("x")
    assert "neither a folder nor a .model file" in fail(tmp_path / "a.txt")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    assert "no tokenizer can be loaded" in fail(tmp_path / "bad")
    (tmp_path / "bad" / "tokenizer_config.json").write_text("[1]")
    assert "tokenizer_config.json" in fail(tmp_path / "bad")


def test_character_models_are_refused(make_spm):
    path = make_spm("characters", model_type="char", byte_fallback=False, user_defined_symbols=[])
    assert "neither a BPE nor a unigram model" in fail(path)


@pytest.fixture(params=["tokenizer.model", "neither"])
def folder_with_code(request, tmp_path, spm_file):
    """A tokenizer that exists as Python code only."""
    if request.param == "tokenizer.model":
        shutil.copy(spm_file, tmp_path / "tokenizer.model")
    config = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own_tokenizer.OwnTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own_tokenizer.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'code_ran')!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "from tokenizers import Tokenizer\n"
        "from tokenizers.models import BPE\n\n\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, *args, **kwargs):\n"
        "        return cls(tokenizer_object=Tokenizer(BPE()), eos_token='<e>')\n"
    )
    return tmp_path


def test_remote_code_runs_only_when_allowed(folder_with_code, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    message = fail(folder_with_code)
    assert message.startswith("model.trust_remote_code: ")
    assert not (folder_with_code / "code_ran").exists()
    assert load_tokenizer(str(folder_with_code), trust_remote_code=True).eos_token == "<e>"
    assert (folder_with_code / "code_ran").exists()
