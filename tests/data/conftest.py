"""Small tokenizers made here, and a recipe stage made from rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers.processors import ByteLevel

from pyft.config.load import load_recipe
from pyft.data.chat.builtin import BUILTIN_TEMPLATES
from pyft.data.tokenizers.load import build_tokenizer, load_tokenizer

CONTROL_TOKENS = sorted({token for builtin in BUILTIN_TEMPLATES.values() for token in builtin.control_tokens})
SENTENCES = (
    "the mountain is high and a river runs deep, who asked? I answered: it's 42 metres. "
    "世界上第一高峰是珠穆朗玛峰 黄河 长江 user assistant system Hello! def f(x): return x ** 2"
)


def make_corpus(seed: int = 0, num_lines: int = 400) -> list[str]:
    rng = random.Random(seed)
    words = SENTENCES.split()
    return [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(num_lines)]


def train_sentencepiece(folder: Path, name: str, lines: list[str] | None = None, **options: object) -> Path:
    corpus = folder / f"{name}.txt"
    corpus.write_text("\n".join(lines or make_corpus()), encoding="utf-8")
    settings = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["<eoh>", "<eoa>"],
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / name), **settings)
    return folder / f"{name}.model"


@pytest.fixture(scope="session")
def bpe():
    return build_tokenizer(make_corpus(), vocab_size=600, control_tokens=CONTROL_TOKENS)


@pytest.fixture(scope="session")
def bpe_with_bos(tmp_path_factory):
    """The same, saved and loaded again, with a BOS and offsets that leave out blanks as Llama 3's do."""
    tokenizer = build_tokenizer(make_corpus(), vocab_size=600, control_tokens=[*CONTROL_TOKENS, "<s>"])
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    folder = tmp_path_factory.mktemp("bpe_with_bos")
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="session")
def corpus():
    return make_corpus()


@pytest.fixture(scope="session")
def make_spm(tmp_path_factory):
    """Train a small sentencepiece model with other options; gives its path."""
    return lambda name, **options: train_sentencepiece(tmp_path_factory.mktemp("spm"), name, **options)


@pytest.fixture(scope="session")
def spm_file(make_spm):
    return make_spm("small")


@pytest.fixture(scope="session")
def spm(spm_file):
    return load_tokenizer(str(spm_file))


# InternLM's file puts no blank before a text and has control tokens among its pieces; Llama 2's puts one,
# keeps runs of blanks and has no control tokens but BOS and eos. Both split digits.
SENTENCEPIECE_KINDS = {
    "internlm": {"split_digits": True, "user_defined_symbols": ["<eoh>", "<eoa>", "<TOKENS_UNUSED_2>"]},
    "llama2": {
        "split_digits": True,
        "add_dummy_prefix": True,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": [],
    },
}


@pytest.fixture(params=[*SENTENCEPIECE_KINDS, "bpe", "bpe_with_bos"])
def tokenizer_name(request):
    return request.param


@pytest.fixture(scope="session")
def tokenizer_folders(make_spm, bpe, bpe_with_bos, tmp_path_factory):
    """A folder for each name, with the control tokens of all templates: theirs, or added to them."""
    tokenizers = {"bpe": bpe, "bpe_with_bos": bpe_with_bos}
    for name, options in SENTENCEPIECE_KINDS.items():
        tokenizers[name] = load_tokenizer(str(make_spm(name, **options)))
        missing = [token for token in CONTROL_TOKENS if token not in tokenizers[name].added_tokens_encoder]
        tokenizers[name].add_tokens(missing, special_tokens=True)
    folders = {}
    for name, tokenizer in tokenizers.items():
        folders[name] = tmp_path_factory.mktemp(f"tokenizer_{name}")
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tokenizers(tokenizer_folders):
    return {name: load_tokenizer(str(folder)) for name, folder in tokenizer_folders.items()}


@pytest.fixture
def write_rows(tmp_path):
    def write(rows: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_recipe(tmp_path):
    """Write and load a recipe; `settings` are added to a minimal one, sections merged."""

    def make(data: Path | str | list, tokenizer_path: Path | str, /, **settings: dict):
        recipe = {
            "mode": "sft",
            "model": {"name_or_path": str(tmp_path), "tokenizer": str(tokenizer_path), "template": "chatml"},
            "data": {"train": [{"path": str(data)}] if not isinstance(data, list) else data},
        }
        for key, value in settings.items():
            recipe[key] = recipe.get(key, {}) | value if isinstance(value, dict) else value
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")
        return load_recipe(str(path), [])

    return make


@pytest.fixture(scope="session")
def bpe_folder(bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    bpe.save_pretrained(folder)
    return folder
