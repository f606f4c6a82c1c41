"""Batches from rows that are read while training: which rows, in which order, and that they add up."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
from collections import Counter

import pytest

from pyft.data import prepare as prepare_module
from pyft.data.batches import streaming
from pyft.data.batches.prefetch import PrefetchedBatches
from pyft.data.chat.bind import get_template
from pyft.data.prepare import prepare
from pyft.data.prepared import source as sources
from pyft.data.show.samples import samples_of_batch
from pyft.data.tokenizers.load import load_tokenizer
from pyft.errors import DataError, Interrupted


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS_PER_BLOCK", 20)
    for module in (sources, prepare_module):
        monkeypatch.setattr(module, "STREAM_ROWS", 30)


def make_rows(count: int, name: str = "a", longest: int = 30) -> list[dict]:
    rng = random.Random(name)
    words = ["river", "mountain", "deep", "世界", "42"]
    return [
        {
            "instruction": f"{name} {number}.",
            "output": " ".join(rng.choices(words, k=rng.randint(1, longest))),
        }
        for number in range(count)
    ]


@pytest.fixture
def run(make_recipe, bpe_folder, tmp_path):
    def run(*paths, num_batches: int = 40, poll=lambda: None, train: dict | None = None, **data: object):
        listed = [path if isinstance(path, dict) else {"path": str(path)} for path in paths]
        data = {"train": listed, "streaming": True, "max_length": 128, "val_size": 0} | data
        train = {"max_steps": num_batches // 2, "gradient_accumulation_steps": 2} | (train or {})
        stage = make_recipe(listed, bpe_folder, data=data, train=train).stages[0]
        tokenizer = load_tokenizer(str(bpe_folder))
        return prepare(stage, tokenizer, get_template("chatml", tokenizer), poll=poll), tokenizer

    return run


def batches_of(source) -> list[list[int]]:
    return [source.batch(0, index).input_ids[0].tolist() for index in range(source.num_batches)]


def names_in(source, tokenizer, first: int = 0) -> list[list[str]]:
    """For every batch the rows in it, by the name in their question."""
    found = []
    for index in range(first, source.num_batches):
        samples = samples_of_batch(source.batch(0, index))
        texts = [tokenizer.backend_tokenizer.decode(sample.input_ids) for sample in samples]
        found.append([re.search(r"user\s*(\w+ \d+)\.", text)[1] for text in texts])
    return found


def test_a_change_anywhere_in_the_first_rows_is_seen(write_rows, run, tmp_path):
    # Blanks behind the rows put some beyond the first and the last MiB.
    lines = [json.dumps(row).ljust(60_000) for row in make_rows(80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    before, _ = run(path)
    lines[25] = lines[25].replace("a 25.", "b 25.")
    path.write_text("\n".join(lines), encoding="utf-8")
    after, tokenizer = run(path)
    assert before.fingerprint != after.fingerprint
    text = tokenizer.backend_tokenizer.decode(after.samples_in_order[25].input_ids)
    assert "b 25." in text


def test_every_row_once_before_any_comes_again(write_rows, run):
    prepared, tokenizer = run(write_rows(make_rows(100)), num_batches=60)
    names = names_in(prepared.train, tokenizer)
    assert prepared.train.num_batches == len(names) == 60
    flat = [name for batch in names for name in batch]
    assert len(flat) > 120
    for block in range(5):
        # A block of 20 rows is mixed, but goes out before the next.
        some = flat[20 * block : 20 * block + 20]
        assert sorted(some) == sorted(f"a {number}" for number in range(20 * block, 20 * block + 20))
        assert some != sorted(some, key=lambda name: int(name.split()[1]))
    assert set(flat[100:120]) == set(flat[:20]) and flat[100:120] != flat[:20]
    assert all(prepared.train.batch(0, index).num_tokens <= 128 for index in range(60))


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_depends_on_its_index_alone(write_rows, run, packing):
    path = write_rows(make_rows(100))
    settings = {"packing": packing, "train": {"per_device_train_batch_size": 3}}
    one = run(path, **settings)[0].train
    expected = batches_of(one)
    before = set(multiprocessing.active_children())
    two = run(path, num_workers=2, **settings)[0].train
    assert two.batch(0, 0).input_ids[0].tolist() == expected[0]
    assert len(set(multiprocessing.active_children()) - before) == 2
    assert batches_of(two) == expected
    # With the last batch they have no more to do.
    assert not set(multiprocessing.active_children()) - before
    # Resuming, going back, asking again.
    resumed = run(path, **settings)[0].train
    for index in (17, 18, 18, 3, 39, 0):
        assert resumed.batch(0, index).input_ids[0].tolist() == expected[index]
    for epoch, index in ((0, 40), (0, -1), (1, 0)):
        with pytest.raises(IndexError):
            one.batch(epoch, index)
    assert batches_of(run(path, packing=packing, train={"seed": 7, **settings["train"]})[0].train) != expected


def test_rows_held_out_are_never_trained_on(write_rows, run):
    prepared, tokenizer = run(write_rows(make_rows(50)), val_size=0.2)
    held_out = {name for batch in names_in(prepared.validation, tokenizer) for name in batch}
    # A share of what is prepared at the start.
    assert len(held_out) == 6 and held_out < {f"a {number}" for number in range(30)}
    trained = {name for batch in names_in(prepared.train, tokenizer) for name in batch}
    assert trained == {f"a {number}" for number in range(50)} - held_out
    assert (prepared.ledger["rows_read"], prepared.ledger["train"]["rows"]) == (30, 24)
    assert any("the ledger covers the first 30 rows" in note for note in prepared.notes)


def test_sources_come_in_proportion_to_their_weights(write_rows, run):
    heavy = {"path": str(write_rows(make_rows(40, "heavy", 3), "heavy.jsonl")), "weight": 3}
    light = {"path": str(write_rows(make_rows(400, "light", 3), "light.jsonl")), "weight": 1}
    prepared, tokenizer = run(heavy, light, num_batches=120)
    names = Counter(name.split()[0] for batch in names_in(prepared.train, tokenizer) for name in batch)
    assert sum(names.values()) > 400
    assert 0.70 < names["heavy"] / sum(names.values()) < 0.80


def test_max_samples_takes_the_first_rows(write_rows, run):
    path = write_rows(make_rows(100))
    prepared, tokenizer = run({"path": str(path), "max_samples": 7})
    assert {name for batch in names_in(prepared.train, tokenizer) for name in batch} == {
        f"a {number}" for number in range(7)
    }


def test_the_running_count_adds_up(write_rows, run):
    rows = make_rows(90)
    rows[4]["output"] = "<nooutput>"
    rows[70]["output"] = "deep " * 200
    lines = [json.dumps(row) for row in rows]
    lines[60] = "oops"
    path = write_rows([])
    path.write_text("\n".join(lines))
    prepared, tokenizer = run(path, val_size=3, on_bad_record="skip")
    names = [name for batch in names_in(prepared.train, tokenizer) for name in batch]
    text = prepared.train.describe()
    read, batched, tokens, held_out, dropped, ahead, again = (
        int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", re.sub(r"\(.*?\)", "", text))
    )
    assert read == batched + held_out + dropped + ahead
    assert again == len(names) // 85 > 0
    assert 0 <= batched - len(names) < 20
    assert held_out in (3 * again, 3 * again + 3)
    assert "bad_record" in text and "nooutput" in text and "overlong" in text
    assert tokens > 1000


def test_a_bad_row_is_told_when_it_is_reached(write_rows, run):
    path = write_rows([])
    # Blanks make it more than one chunk.
    lines = [json.dumps(row).ljust(2000) for row in make_rows(2000)]
    path.write_text("\n".join([*lines, "oops\n"]), encoding="utf-8")
    prepared, _ = run(path, num_batches=1000)
    prepared.train.batch(0, 0)
    with pytest.raises(DataError, match=r"data\.jsonl:2001:1: broken JSON"):
        prepared.train.batch(0, 999)


def test_nothing_left_to_train_on_does_not_go_round_for_ever(write_rows, run):
    path = write_rows(make_rows(3))
    other = [{"instruction": "q", "output": "<nooutput>"}] * 3
    prepared, _ = run(path, {"path": str(write_rows(other, "other.jsonl")), "format": "alpaca"})
    with pytest.raises(DataError, match=r"other\.jsonl: none of its rows is left to train on"):
        batches_of(prepared.train)


def test_a_signal_ends_the_passing_over_but_not_a_step(write_rows, run):
    is_asked = False

    def poll() -> None:
        if is_asked:
            raise Interrupted(signal.SIGTERM)

    path = write_rows(make_rows(20))
    prepared, _ = run(path, poll=poll)
    first = prepared.train.batch(0, 0)
    is_asked = True
    # One after another, as a run takes them, however often the file is read again.
    again = [prepared.train.batch(0, index) for index in range(prepared.train.num_batches)]
    assert again[0].input_ids.tolist() == first.input_ids.tolist()
    is_asked = False
    resumed = run(path, poll=poll)[0].train
    is_asked = True
    with pytest.raises(Interrupted):
        resumed.batch(0, 39)


def test_made_ahead_in_a_thread_they_are_the_same(write_rows, run):
    path = write_rows(make_rows(100))
    expected = batches_of(run(path)[0].train)
    for num_workers in (0, 2):
        before = set(multiprocessing.active_children())
        with PrefetchedBatches(run(path, num_workers=num_workers)[0].train, 2) as source:
            assert batches_of(source) == expected
            # Resuming, and going back.
            for index in (17, 18, 3, 39):
                assert source.batch(0, index).input_ids[0].tolist() == expected[index]
        assert not set(multiprocessing.active_children()) - before


def test_a_signal_ends_the_passing_over_in_a_thread(write_rows, run):
    is_asked = False

    def poll() -> None:
        if is_asked:
            raise Interrupted(signal.SIGTERM)

    resumed = run(write_rows(make_rows(20)), poll=poll)[0].train
    is_asked = True
    with PrefetchedBatches(resumed, 2) as source, pytest.raises(Interrupted):
        source.batch(0, 39)
