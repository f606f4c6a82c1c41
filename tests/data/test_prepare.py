"""From a recipe to batches: splits, counts that agree, refusals, fingerprints."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter

import pytest
from encoded import sources_of

from pyft.data.chat.bind import get_template
from pyft.data.encode.sample import IGNORED
from pyft.data.prepare import prepare
from pyft.data.recipe_tokenizer import tokenizer_for
from pyft.data.show.ledger import check_ledger, format_ledger
from pyft.errors import ConfigError, DataError


def make_rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    words = ["the", "mountain", "river", "runs", "deep", "high", "who", "世界", "高峰", "42"]
    return [
        {
            "instruction": f"question {number} " + " ".join(rng.choices(words, k=rng.randint(1, 8))),
            "output": " ".join(rng.choices(words, k=rng.randint(1, 30))),
        }
        for number in range(count)
    ]


def prepare_recipe(recipe, index: int = 0):
    stage = recipe.stages[index]
    tokenizer = tokenizer_for(recipe, stage)
    template = get_template(stage.model.template, tokenizer) if stage.mode == "sft" else None
    return prepare(stage, tokenizer, template)


@pytest.fixture
def run(make_recipe, bpe_folder):
    return lambda path, /, **settings: prepare_recipe(make_recipe(path, bpe_folder, **settings))


def test_every_count_agrees(write_rows, run):
    rows = make_rows(60)
    rows[3]["output"] = "<nooutput>"
    rows[7]["output"] = "word " * 300
    rows[9]["output"] = "word " * 400
    path = write_rows(rows)
    prepared = run(path, data={"train": [{"path": str(path)}], "max_length": 128, "val_size": 0.1})
    ledger = prepared.ledger
    assert ledger["rows_read"] == 60
    others = {"no_trained_tokens": 0, "not_sampled": 0, "bad_record": 0}
    assert ledger["dropped"] == {"nooutput": 1, "overlong": 2, **others}
    assert (ledger["train"]["rows"], ledger["validation"]["rows"]) == (51, 6)
    assert ledger["tokens_cut"] > 700
    everything = prepared.samples_in_order
    assert len(everything) == 57
    assert sum(len(s.input_ids) for s in everything) == ledger["tokens_encoded"] - ledger["tokens_cut"]
    for part, samples, source in (
        (ledger["train"], prepared.train.samples, prepared.train),
        (ledger["validation"], prepared.validation.samples, prepared.validation),
    ):
        lengths = sorted(len(sample.input_ids) for sample in samples)
        assert part["samples"] == len(samples)
        assert part["tokens"] == sum(lengths)
        assert part["length"]["max"] == lengths[-1] <= 128
        assert part["length"]["p50"] == lengths[(len(lengths) + 1) // 2 - 1]
        trained = sum(label != IGNORED for sample in samples for label in sample.labels)
        assert part["trained_tokens"] == part["target_tokens"] == trained
        assert part["trained_share"] == pytest.approx(trained / sum(lengths), abs=1e-4)
        batches = [source.batch(0, index) for index in range(source.num_batches)]
        assert part["packs"] == len(batches)
        assert part["target_tokens"] == sum(batch.num_targets for batch in batches)
        assert part["tokens"] == sum(batch.num_tokens for batch in batches)
        assert part["fill"] == pytest.approx(sum(lengths) / (len(batches) * 128), abs=1e-4)
        assert all(batch.num_tokens <= 128 for batch in batches)


def test_a_ledger_whose_sums_do_not_agree_is_an_error(write_rows, run):
    ledger = run(write_rows(make_rows(10))).ledger
    for change in ({"rows_read": 11}, {"tokens_cut": 1}, {"dropped": {"overlong": 1}}):
        with pytest.raises(RuntimeError, match="accounted for"):
            check_ledger(ledger | change)


def test_table_shows_the_numbers(write_rows, run):
    text = format_ledger(run(write_rows(make_rows(40))).ledger)
    for label in ("rows read", "dropped: overlong", "tokens trained", "packs", "fill of packs", "length p90"):
        assert label in text
    assert "\t" not in text and "\r" not in text


def test_a_row_of_exactly_max_length_is_kept(write_rows, run):
    path = write_rows(make_rows(1))
    length = run(path, data={"train": [{"path": str(path)}], "val_size": 0}).ledger["tokens_encoded"]
    settings = {"train": [{"path": str(path)}], "val_size": 0}
    assert run(path, data=settings | {"max_length": length}).ledger["train"]["fill"] == 1.0
    with pytest.raises(DataError) as caught:
        run(path, data=settings | {"max_length": length - 1})
    message = str(caught.value)
    assert "none of the 1 rows is left to train on (dropped: overlong 1)" in message
    assert f"raise data.max_length (now {length - 1}; the longest row has {length} tokens)" in message


def test_nothing_is_trained(write_rows, run):
    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]
    }
    with pytest.raises(
        DataError, match=r"dropped: no_trained_tokens 2\): give at least one row with an answer"
    ):
        run(write_rows([row, row]))


def test_split_does_not_depend_on_the_order_of_rows(write_rows, run):
    rows = make_rows(40)
    one = run(write_rows(rows, "a.jsonl"))
    two = run(write_rows(rows[::-1], "b.jsonl"))
    assert {tuple(s.input_ids.tolist()) for s in one.validation.samples} == {
        tuple(s.input_ids.tolist()) for s in two.validation.samples
    }
    assert len(one.validation.samples) == 2
    assert not {tuple(s.input_ids.tolist()) for s in one.validation.samples} & {
        tuple(s.input_ids.tolist()) for s in one.train.samples
    }
    other = run(write_rows(rows, "a.jsonl"), train={"seed": 7})
    assert {tuple(s.input_ids.tolist()) for s in one.validation.samples} != {
        tuple(s.input_ids.tolist()) for s in other.validation.samples
    }


@pytest.mark.parametrize("weight", [0.5, 2, 1.3])
def test_a_weight_is_kept_to_the_row(write_rows, run, weight):
    path, other = write_rows(make_rows(80), "a.jsonl"), write_rows(make_rows(40, 1), "b.jsonl")
    train = [{"path": str(path), "weight": weight}, {"path": str(other)}]
    prepared = run(path, data={"train": train, "val_size": 0.1})
    held_out = set(sources_of(prepared.validation.samples))
    assert len(held_out) == len(prepared.validation.samples) == 12
    times = Counter(sources_of(prepared.train.samples))
    assert not held_out & times.keys()
    own = [times[line] for number in range(1, 81) if (line := f"{path}:{number}") not in held_out]
    more = round(weight % 1 * len(own))
    assert Counter(own) == +Counter({int(weight): len(own) - more, int(weight) + 1: more})
    assert sum(times.values()) - sum(own) == 40 - sum(line.startswith(str(other)) for line in held_out)


@pytest.mark.parametrize(
    ("val_size", "count", "expected"),
    [(0, 10, 0), (0.5, 10, 5), (0.01, 10, 1), (0.99, 2, 1), (3, 10, 3), (0.5, 1, 0), (9, 10, 9)],
)
def test_val_size(write_rows, run, val_size, count, expected):
    path = write_rows(make_rows(count))
    prepared = run(path, data={"train": [{"path": str(path)}], "val_size": val_size})
    assert prepared.validation is None if expected == 0 else len(prepared.validation.samples) == expected
    assert len(prepared.train.samples) == count - expected
    assert (expected == 0 and val_size > 0) == ("no validation: there is a single row" in prepared.notes)


def test_val_size_that_leaves_nothing(write_rows, run):
    path = write_rows(make_rows(10))
    with pytest.raises(ConfigError, match=r"data\.val_size is 10 of 10 rows"):
        run(path, data={"train": [{"path": str(path)}], "val_size": 10})


def test_validation_files_and_duplicates(write_rows, run):
    rows = make_rows(20)
    train, validation = (
        write_rows(rows, "train.jsonl"),
        write_rows([*rows[:3], *make_rows(4, seed=5)], "val.jsonl"),
    )
    prepared = run(train, data={"train": [{"path": str(train)}], "validation": [{"path": str(validation)}]})
    ledger = prepared.ledger
    assert (ledger["rows_read"], ledger["train"]["rows"], ledger["validation"]["rows"]) == (27, 20, 7)
    assert ledger["duplicates"] == 3
    assert any(note.startswith("3 validation samples are also training samples") for note in prepared.notes)
    assert sources_of(prepared.samples_in_order) == [f"{train}:{n}" for n in range(1, 21)]


def test_several_files_of_different_formats(write_rows, run, tmp_path):
    one = write_rows(make_rows(3), "a.jsonl")
    two = tmp_path / "b.json"
    two.write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}])
    )
    prepared = run([{"path": str(one)}, {"path": str(two), "format": "sharegpt"}])
    assert sources_of(prepared.samples_in_order) == [f"{one}:1", f"{one}:2", f"{one}:3", f"{two}:1"]
    assert prepared.notes[:2] == [
        f"{one}: format alpaca (found from its keys), 3 rows",
        f"{two}: format sharegpt (as given), 1 rows",
    ]


def test_without_packing_each_sample_is_a_group(write_rows, run):
    path = write_rows(make_rows(10))
    data = {"train": [{"path": str(path)}], "packing": False, "max_length": None, "val_size": 0}
    prepared = run(path, data=data, train={"per_device_train_batch_size": 4})
    assert prepared.train.num_batches == 3
    assert "packs" not in prepared.ledger["train"]
    assert [len(prepared.train.batch(0, index).cu_seqlens) - 1 for index in range(3)] == [4, 4, 2]


def test_pretrain(write_rows, run):
    rows = [{"text": "the river runs deep " * n} for n in range(1, 30)]
    path = write_rows(rows)
    prepared = run(
        path, mode="pretrain", data={"train": [{"path": str(path)}], "max_length": 32, "val_size": 0.1}
    )
    ledger = prepared.ledger
    assert (ledger["rows_read"], ledger["train"]["rows"], ledger["validation"]["rows"]) == (29, 26, 3)
    assert ledger["tokens_cut"] == 0
    assert ledger["train"]["trained_share"] == 1.0
    assert ledger["train"]["samples"] > 26
    sides = [set(sources_of(part.samples)) for part in (prepared.train, prepared.validation)]
    sources = Counter(sources_of(prepared.samples_in_order))
    assert ledger["rows_split"] == sum(count > 1 for count in sources.values()) > 0
    # The first token of a sample has nothing before it to be told from.
    assert ledger["train"]["target_tokens"] == ledger["train"]["tokens"] - ledger["train"]["samples"]
    # Windows of one document stay on one side of the split.
    assert not sides[0] & sides[1]
    check_ledger(ledger)


def test_modes_that_do_not_fit_the_rows(write_rows, run):
    with pytest.raises(DataError, match=r"data\.jsonl:1: mode pretrain reads plain texts"):
        run(write_rows(make_rows(2)), mode="pretrain")
    with pytest.raises(DataError, match=r"data\.jsonl:1: mode sft reads conversations"):
        run(write_rows([{"text": "a"}]))


def test_a_refused_row_names_its_line(write_rows, run):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": talk}, {"messages": [talk[0], {"role": "tool", "content": "1"}, talk[1]]}]
    with pytest.raises(
        DataError, match=r"data\.jsonl:2: template internlm2_chat refuses the row: it has no place for tools"
    ):
        run(write_rows(rows), model={"template": "internlm2_chat"})


@pytest.mark.parametrize("marks_the_end", [True, False])
def test_an_end_mark_that_is_never_learned_is_refused(write_rows, run, bpe_folder, tmp_path, marks_the_end):
    inside, outside = ("<|im_end|>", "") if marks_the_end else ("", "<|im_end|>")
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}" + inside + "{% endgeneration %}" + outside + "\n"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = shutil.copytree(bpe_folder, tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(source)
    settings = {"tokenizer": str(folder), "template": None}
    path = write_rows(make_rows(3))
    if marks_the_end:
        assert run(path, model=settings).ledger["train"]["trained_tokens"] > 0
        return
    with pytest.raises(ConfigError, match=r"leaves <\|im_end\|> out of what is learned"):
        run(path, model=settings)


def test_fingerprint_is_of_the_content(write_rows, run, tmp_path):
    path = write_rows(make_rows(5))
    base = run(path).fingerprint
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    assert run(moved).fingerprint == base
    data = {"train": [{"path": str(path)}]}
    others = [
        run(path, data=data | {"max_length": 512}),
        run(path, data=data | {"system": "S"}),
        run(path, data=data | {"packing": False}),
        run(path, train={"seed": 1}),
        run(path, model={"template": "llama3_chat"}),
        run(write_rows(make_rows(5, seed=3))),
    ]
    prints = [other.fingerprint for other in others]
    assert len({base, *prints}) == len(prints) + 1


def test_tokenizer_built_from_the_texts_of_all_stages(write_rows, tmp_path, make_recipe):
    texts = write_rows([{"text": "High is Everest, high is Everest."}] * 20, "texts.jsonl")
    chats = write_rows(
        [{"instruction": "Which one?", "output": "Chomolungma, Chomolungma."}] * 20, "chats.jsonl"
    )
    stages = [
        {"mode": "pretrain", "data": {"train": [{"path": str(texts)}]}},
        {"mode": "sft", "data": {"train": [{"path": str(chats)}]}},
    ]
    model = {
        "name_or_path": None,
        "from_scratch": True,
        "config": {"model_type": "llama"},
        "tokenizer": {"type": "bpe", "vocab_size": 400},
        "template": None,
    }
    recipe = make_recipe(texts, "", model=model, stages=stages)
    tokenizer = tokenizer_for(recipe, recipe.stages[1])
    assert len(tokenizer(" Chomolungma")["input_ids"]) == len(tokenizer(" Everest")["input_ids"]) == 1
    again = tokenizer_for(recipe, recipe.stages[0])
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert get_template(None, tokenizer).end_mark == "<|im_end|>"
    for index in (0, 1):
        assert prepare_recipe(recipe, index).ledger["rows_read"] == 20


def test_truncation_that_cuts_every_end_is_refused(write_rows, run):
    rows = [{"instruction": "q", "output": "word " * 300} for _ in range(3)]
    data = {
        "train": [{"path": str(write_rows(rows))}],
        "max_length": 64,
        "overlong": "truncate",
        "val_size": 0,
    }
    with pytest.raises(
        ConfigError, match=r"all 3 rows .* lost their end.*data\.max_length.*raise max_length"
    ):
        run("", data=data)
    assert run("", data=data | {"train_on_eot": False}).ledger["rows_truncated"] == 3
