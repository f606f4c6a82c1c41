"""data_preparation: rows of chat to ids and labels; rendering, tokenising, labels of the assistant's turns.

pyft's time is that of all it does with a file: reading, checking, writing the cache, packing and the ledger
are in it. TRL's is that of `SFTTrainer`'s own preparation with `assistant_only_loss`, on rows that are in
memory already, with a process for each core. All have the same rows, tokenizer, template and cores, and find
nothing prepared before. pyft picks its own way to use the cores: for small files threads of the tokenizer in
place of processes, which are timed beside it. "rows to labels" is the part that TRL's time is of: converting,
rendering, tokenising and labelling rows that are in memory.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import chat_rows
import peers
import shapes
from chat_rows import Turns
from timing import Case

from pyft.config.load import load_recipe
from pyft.config.modes import SFT
from pyft.config.schema import Stage
from pyft.data.chat.bind import get_template
from pyft.data.encode.rows import RowEncoder
from pyft.data.encode.sample import EncodeOptions
from pyft.data.prepare import prepare
from pyft.data.rows.registry import CONVERTERS
from pyft.data.tokenizers.load import build_tokenizer, load_tokenizer

DTYPES = ("text",)
TEMPLATE = "qwen_chat"
_MARKS = ("<|im_start|>", "<|im_end|>")
# No row is longer, so that nothing is left out.
_MAX_LENGTH = 1 << 16

Labelled = tuple[list[int], list[int]]

_files: dict[str, Path | None] = {"rows": None, "tokenizer": None}


def use_files(rows: Path | None, tokenizer: Path | None) -> None:
    """Measure with real rows, or a real tokenizer, to which the template's control tokens are added."""
    _files.update(rows=rows, tokenizer=tokenizer)


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: rows, turns (question and answer) in each, cores.
        dtype: has no meaning here.
        device: "cpu".

    Yields:
        The whole preparation.
    """
    rows = _make_rows(int(shape["rows"]), int(shape["turns"]))
    tokenizer = _make_tokenizer(rows)
    cores = int(shape["cores"])
    folder = Path(_scratch().name)
    data = _write(rows, folder)
    contenders = {
        "pyft": _pyft(data, tokenizer, None, folder),
        f"pyft, {cores} workers": _pyft(data, tokenizer, cores, folder),
        "pyft, rows to labels": _rows_to_labels(rows, tokenizer),
    }
    trl = peers.trl()
    if trl is not None:
        contenders["trl"] = _trl(trl, rows, tokenizer, cores, folder)
    expected = [_label_by_hand(turns, tokenizer) for turns in rows]
    num_tokens = sum(len(ids) for ids, _ in expected)
    yield Case(
        op="data_preparation",
        label=f"{shapes.format_shape(shape)} tokens={num_tokens}",
        contenders={name: lambda run=run: _on_cores(cores, run) for name, run in contenders.items()},
        check=lambda name, result: _compare(expected, _as_lists(name, result)),
        work=len(rows),
        unit="krows/s",
        scale=1e3,
    )


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the whole run, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="pyft-bench-")


def _make_rows(num_rows: int, num_turns: int) -> list[Turns]:
    if _files["rows"] is None:
        return chat_rows.make_rows(num_rows, num_turns)
    found = chat_rows.read_rows(_files["rows"])
    return list(itertools.islice(itertools.cycle(found), num_rows))


def _make_tokenizer(rows: list[Turns]) -> Any:
    if _files["tokenizer"] is None:
        texts = [turn["content"] for turns in rows[:2000] for turn in turns]
        tokenizer = build_tokenizer(texts, vocab_size=8000, control_tokens=_MARKS)
    else:
        tokenizer = load_tokenizer(str(_files["tokenizer"]))
        tokenizer.add_tokens(
            [mark for mark in _MARKS if mark not in tokenizer.get_vocab()], special_tokens=True
        )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.chat_template = get_template(TEMPLATE, tokenizer).source
    return tokenizer


def _write(rows: list[Turns], folder: Path) -> Path:
    data = folder / f"rows-{len(rows)}.jsonl"
    with data.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in rows)
    return data


def _pyft(data: Path, tokenizer: Any, num_workers: int | None, folder: Path) -> Callable[[], Any]:
    template = get_template(TEMPLATE, tokenizer)

    def run() -> Any:
        _let_tokenizer_use_threads()
        stage = _read_stage(data, num_workers, Path(tempfile.mkdtemp(dir=folder)))
        return prepare(stage, tokenizer, template)

    return run


def _rows_to_labels(rows: list[Turns], tokenizer: Any) -> Callable[[], Any]:
    encoder = RowEncoder(
        tokenizer, get_template(TEMPLATE, tokenizer), EncodeOptions(SFT, max_length=_MAX_LENGTH)
    )

    def run() -> Any:
        _let_tokenizer_use_threads()
        unused: Counter[str] = Counter()
        return encoder.encode([CONVERTERS["messages"]({"messages": turns}, unused) for turns in rows])

    return run


def _let_tokenizer_use_threads() -> None:
    """`datasets` switches them off for its processes, and leaves them off in this one."""
    os.unsetenv("TOKENIZERS_PARALLELISM")


def _read_stage(data: Path, num_workers: int | None, cache_dir: Path) -> Stage:
    recipe = {
        "mode": "sft",
        "model": {"name_or_path": str(cache_dir), "template": TEMPLATE},
        "data": {
            "train": [{"path": str(data), "format": "messages"}],
            "val_size": 0,
            "max_length": _MAX_LENGTH,
            "num_workers": num_workers,
            "cache_dir": str(cache_dir),
        },
    }
    path = cache_dir / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return load_recipe(str(path), []).stages[0]


def _trl(trl: ModuleType, rows: list[Turns], tokenizer: Any, cores: int, folder: Path) -> Callable[[], Any]:
    """TRL's trainer around a model of no size, for the way it prepares its training rows."""
    import datasets
    from transformers import AutoModelForCausalLM, LlamaConfig

    datasets.disable_caching()
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list([{"messages": turns} for turns in rows])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about an option that TRL sets
        options = trl.SFTConfig(
            output_dir=str(folder / "trl"),
            assistant_only_loss=True,
            dataset_num_proc=cores,
            max_length=None,
            packing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        )
        trainer = trl.SFTTrainer(
            model=model, args=options, train_dataset=dataset.select(range(cores)), processing_class=tokenizer
        )
    return lambda: trainer._prepare_dataset(dataset, tokenizer, options, False, None, "train")


def _on_cores(cores: int, run: Callable[[], Any]) -> Any:
    """Run on so many cores, where the system can hold a process to them."""
    if not hasattr(os, "sched_setaffinity"):
        return run()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        return run()
    finally:
        os.sched_setaffinity(0, before)


def _label_by_hand(turns: Turns, tokenizer: Any) -> Labelled:
    """Ids of the text as any server makes it; labels of answers and the marks after them, by characters."""
    text, learned = "", set()
    for turn in turns:
        text += f"<|im_start|>{turn['role']}\n"
        start = len(text)
        text += f"{turn['content']}<|im_end|>"
        if turn["role"] == "assistant":
            learned.update(range(start, len(text)))
        text += "\n"
    text = (tokenizer.bos_token or "") + text
    shift = len(tokenizer.bos_token or "")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token_id if start - shift in learned else -100
        for token_id, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return encoded["input_ids"], labels


def _as_lists(name: str, result: Any) -> Iterable[Labelled]:
    if name == "trl":
        return zip(result["input_ids"], result["labels"], strict=True)
    samples = [row.samples[0] for row in result] if isinstance(result, list) else result.samples_in_order
    return [(sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples]


def _compare(expected: list[Labelled], found: Iterable[Labelled]) -> str | None:
    found = list(found)
    if len(found) != len(expected):
        return f"{len(found)} samples of {len(expected)} rows"
    for row, ((ids, labels), (found_ids, found_labels)) in enumerate(zip(expected, found, strict=True)):
        if list(found_ids) != ids:
            return f"row {row}: other ids than those of its text"
        if list(found_labels) != labels:
            return f"row {row}: other labels than those of its answers"
    return None
