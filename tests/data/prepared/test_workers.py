"""The number of worker processes changes nothing: not a batch, not a count, not a line that is printed."""

from __future__ import annotations

import json
import random

import pytest
import torch
from encoded import sources_of

from pyft.data.chat.bind import get_template
from pyft.data.prepare import PreparedData, prepare
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.errors import DataError

WORDS = ["the", "mountain", "river", "runs", "deep", "high", "who", "世界", "高峰", "42", "<|im_end|>", "\n"]


def make_rows(count: int, mode: str) -> list[dict]:
    rng = random.Random(count)

    def prose(longest: int) -> str:
        return "so " + " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    if mode == "pretrain":
        texts = [prose(200) if number % 97 != 5 else None for number in range(count)]
        return [{"text": text, "n": number} for number, text in enumerate(texts)]
    rows = []
    for number in range(count):
        turns = []
        for _ in range(rng.randint(1, 3)):
            turns += [{"role": "user", "content": prose(20)}, {"role": "assistant", "content": prose(90)}]
        turns[-1]["loss"] = rng.random() < 0.9
        if number % 97 == 5:
            turns[1]["content"] = None
        rows.append({"messages": turns})
    return rows


@pytest.fixture(params=["sft", "pretrain"])
def mode(request):
    return request.param


@pytest.fixture
def run(mode, tmp_path, make_recipe, bpe_folder):
    """Prepare several chunks of two files with so many workers, into a cache of their own."""
    paths = [tmp_path / "one.jsonl", tmp_path / "two.json"]
    rows = [make_rows(400, mode), make_rows(150, mode)]
    # Blanks behind the rows make several chunks of few of them.
    paths[0].write_text("\n".join(json.dumps(row).ljust(6000) for row in rows[0]), encoding="utf-8")
    paths[1].write_text(json.dumps(rows[1]), encoding="utf-8")
    assert paths[0].stat().st_size > 2 << 20, "one chunk is not enough"

    def run(num_workers: int, **data: object) -> PreparedData:
        sources = [{"path": str(paths[0]), "max_samples": 300}, {"path": str(paths[1]), "weight": 1.5}]
        settings = {
            "train": sources,
            "val_size": 0.1,
            "max_length": 256,
            "on_bad_record": "skip",
            "num_workers": num_workers,
            "cache_dir": str(tmp_path / f"cache {num_workers}"),
        } | data
        recipe = make_recipe(
            sources, bpe_folder, mode=mode, data=settings, train={"per_device_train_batch_size": 2}
        )
        stage = recipe.stages[0]
        tokenizer = tokenizer_for(recipe, stage)
        template = get_template("chatml", tokenizer) if mode == "sft" else None
        return prepare(stage, tokenizer, template)

    return run


def batches_of(prepared: PreparedData) -> list[list[torch.Tensor]]:
    found = []
    for source, epochs in ((prepared.train, 2), (prepared.validation, 1)):
        for epoch in range(epochs):
            for index in range(source.num_batches):
                batch = source.batch(epoch, index)
                found.append([batch.input_ids, batch.targets, batch.position_ids, batch.cu_seqlens])
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_batches_counts_and_lines_are_the_same(run, packing):
    none, two = run(0, packing=packing), run(2, packing=packing)
    ours, theirs = batches_of(none), batches_of(two)
    assert len(ours) == len(theirs) > 20
    for one, other in zip(ours, theirs, strict=True):
        for left, right in zip(one, other, strict=True):
            assert left.dtype == right.dtype and torch.equal(left, right)
    assert none.ledger == two.ledger
    assert (none.fingerprint, none.preview, none.notes) == (two.fingerprint, two.preview, two.notes)
    assert none.ledger["rows_read"] == 550 and none.ledger["dropped"]["not_sampled"] == 100
    assert sources_of(none.samples_in_order) == sources_of(two.samples_in_order)


def test_the_first_mistake_of_the_files_is_told(run):
    for num_workers in (0, 2):
        with pytest.raises(DataError) as caught:
            run(num_workers, on_bad_record="error")
        assert str(caught.value).split(" ")[0].endswith("one.jsonl:6:")
