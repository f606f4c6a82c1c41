"""Build a fast tokenizer backend from a sentencepiece `.model`, with sentencepiece's own ids.

transformers' conversion of such files ranks merges by piece index; sentencepiece ranks them by score, which
differs for runs of blanks. Here merges are ranked by score, the dummy prefix is the model's own choice, and
control pieces and user-defined ones that look like tags are special tokens. Left out: word and character
models, subword sampling.

Loading ends with a comparison of the two on a probe text; if they differ, one warning line says so.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from pyft.errors import ConfigError

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
PROBE_TEXTS = (
    "Hello world, it's 12:30.",
    " one leading blank, two  blanks, three   , eight        , trailing  ",
    "    def f(x):\n        return x ** 2\n\n\n\treturn\r\n",
    "世界上第一高峰是珠穆朗玛峰。Traditional: 繁體、ひらがな、한국어",
    "emoji 😀 👩‍👩‍👧 and é, ﬁ, ½",
    "digits 0 1 42 1234567890 3.14159",
)


@dataclass(frozen=True)
class SentencePieceModel:
    """A backend, and the texts of the special pieces of its `.model` (None where it has none)."""

    backend: Tokenizer
    bos: str | None
    eos: str | None
    unk: str | None
    pad: str | None


def read_sentencepiece(path: str) -> SentencePieceModel:
    """Read a `.model` file; ConfigError unless it is a BPE or unigram model."""
    proto = _parse(path)
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise ConfigError(
            f"model.tokenizer: {path} is neither a BPE nor a unigram model: use another tokenizer"
        )
    backend = Tokenizer(_make_bpe(proto) if kind == _BPE else _make_unigram(proto))
    _set_text_rules(backend, proto)
    for piece in proto.pieces:
        if piece.type in (_CONTROL, _UNKNOWN):
            backend.add_special_tokens([AddedToken(piece.piece, normalized=False, special=True)])
    tags = [text for text in _user_defined(proto) if _TAG.fullmatch(text)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in tags])
    spec = proto.trainer_spec
    pieces = proto.pieces
    bos, eos, unk, pad = (
        pieces[index].piece if 0 <= index < len(pieces) else None
        for index in (spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id)
    )
    return SentencePieceModel(backend, bos, eos, unk, pad)


def _user_defined(proto: Any) -> list[str]:
    """List the pieces that sentencepiece keeps whole wherever they occur."""
    return [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]


def _plain_pieces(proto: Any) -> list[str]:
    """List those of them that are text (runs of blanks, digits, words), not control tokens; longest first."""
    return sorted((text for text in _user_defined(proto) if not _TAG.fullmatch(text)), key=len, reverse=True)


def _parse(path: str) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(Path(path).read_bytes())
    except DecodeError:
        raise ConfigError(f"model.tokenizer: {path} is not a sentencepiece model: check the file") from None
    except OSError as error:
        raise ConfigError(
            f"model.tokenizer: {path} cannot be read ({error.strerror}): check the path"
        ) from None
    if not proto.pieces:
        raise ConfigError(f"model.tokenizer: {path} is not a sentencepiece model: check the file")
    return proto


def _make_bpe(proto: Any) -> BPE:
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    ranked = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                ranked.append((-score, vocab[text], cut, left, right))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    return BPE(
        vocab=vocab,
        merges=merges,
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        # A piece that _set_text_rules has cut out stays whole.
        ignore_merges=bool(_plain_pieces(proto)),
    )


def _make_unigram(proto: Any) -> Unigram:
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    return Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _set_text_rules(backend: Tokenizer, proto: Any) -> None:
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    joins_blanks = spec.remove_extra_whitespaces
    if joins_blanks:
        steps += [normalizers.Replace(Regex(r" +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if not spec.add_dummy_prefix:
            steps.append(normalizers.Replace(Regex(r"\A "), ""))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    # Where blanks are joined, one at the start of the text becomes the dummy prefix itself.
    scheme = "first" if spec.add_dummy_prefix and joins_blanks else "never"
    rules: list[Any] = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)]
    if spec.add_dummy_prefix and not joins_blanks:
        # This step puts a blank before the text even where it begins with one (which has become "▁" by now);
        # with "▁" itself as replacement it would not. The step after it makes that blank a "▁".
        rules.insert(0, pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False))
    plain = _plain_pieces(proto)
    if plain:
        pattern = Regex("|".join(re.escape(text) for text in plain))
        rules.append(pre_tokenizers.Split(pattern, behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(rules)
    back: list[Any] = [decoders.Replace("▁", " ")]
    if proto.trainer_spec.byte_fallback:
        back.append(decoders.ByteFallback())
    back.append(decoders.Fuse())
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(back)


def compare_with_sentencepiece(backend: Tokenizer, path: str) -> list[str]:
    """Return the PROBE_TEXTS whose ids differ from sentencepiece's own."""
    import sentencepiece

    # Else its C++ side writes log lines about unused pieces to stderr.
    if hasattr(sentencepiece, "set_min_log_level"):
        sentencepiece.set_min_log_level(2)
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    return [t for t in PROBE_TEXTS if backend.encode(t, add_special_tokens=False).ids != processor.encode(t)]


def warn_where_different(backend: Tokenizer, path: str) -> None:
    """Print one warning line if this backend and sentencepiece disagree on a probe text."""
    different = compare_with_sentencepiece(backend, path)
    if different:
        print(
            f"warning: {path}: ids differ from sentencepiece's own in {len(different)} of "
            f"{len(PROBE_TEXTS)} probe "
            f"texts, such as {different[0]!r}: a model trained with sentencepiece may read such text "
            "less well",
            file=sys.stderr,
        )
