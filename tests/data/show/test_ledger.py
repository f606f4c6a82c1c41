"""Random rows, options and sources: the ledger says of every row and token what plain counting says."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from encoded import as_lists
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled import IGNORED, chatml, label

from pyft.config.load import load_recipe
from pyft.data.chat.bind import get_template
from pyft.data.prepare import PreparedData, prepare

PROFILE = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = ["the", "river", "runs", "deep", "峰"]
PROSE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
LONG = st.integers(20, 60).map(lambda count: "high " * count)


@dataclass(frozen=True)
class Case:
    """A line of a file, and what is to become of it: its turns with whether they are learned, or why not."""

    line: str
    turns: tuple[tuple[str, str, bool], ...] = ()
    reason: str | None = None


# A row that is always short enough, so that something is left to learn, and an end mark with it.
SURE = Case(
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    (("user", "a", False), ("assistant", "b", True)),
)


@st.composite
def talks(draw: st.DrawFn) -> Case:
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", draw(PROSE), False))
        turns.append(("assistant", draw(st.one_of(PROSE, PROSE, LONG)), draw(st.booleans())))
    messages = [{"role": r, "content": c} | ({} if r == "user" else {"loss": flag}) for r, c, flag in turns]
    reason = None if any(flag for *_, flag in turns) else "no_trained_tokens"
    return Case(json.dumps({"messages": messages}), tuple(turns), reason)


@st.composite
def pairs(draw: st.DrawFn) -> Case:
    question, answer = draw(PROSE), draw(st.one_of(PROSE, st.just("<nooutput>")))
    row = json.dumps({"instruction": question, "output": answer})
    if answer == "<nooutput>":
        return Case(row, reason="nooutput")
    return Case(row, (("user", question, False), ("assistant", answer, True)))


BROKEN_LINES = ["oops", '{"messages": []}', "{}", "[1]"]
BROKEN = st.sampled_from(BROKEN_LINES).map(lambda text: Case(text, reason="bad_record"))


def files(kind: st.SearchStrategy[Case]) -> st.SearchStrategy[list[Case]]:
    """Files whose format their first row gives away."""
    more = st.lists(st.one_of(kind, kind, BROKEN), max_size=7)
    return st.tuples(kind, more).map(lambda drawn: [drawn[0], *drawn[1]])


OPTIONS = st.fixed_dictionaries(
    {
        "max_length": st.sampled_from([24, 48, 4096]),
        "overlong": st.sampled_from(["drop", "truncate"]),
        "packing": st.booleans(),
        "val_size": st.sampled_from([0, 0.3]),
    }
)


@pytest.fixture(scope="module")
def run(bpe):
    template = get_template("chatml", bpe)

    def run(sources: list[list[Case]], options: dict, weights: list[float]) -> PreparedData:
        with tempfile.TemporaryDirectory() as folder:
            train = []
            for number, cases in enumerate(sources):
                path = Path(folder) / f"{number}.jsonl"
                path.write_text("\n".join(case.line for case in cases), encoding="utf-8")
                train.append({"path": str(path), "weight": weights[number]})
            data = {"train": train, "on_bad_record": "skip", "cache_dir": f"{folder}/cache"} | options
            recipe = Path(folder) / "recipe.yaml"
            model = {"name_or_path": folder, "template": "chatml"}
            recipe.write_text(json.dumps({"mode": "sft", "model": model, "data": data}), encoding="utf-8")
            prepared = prepare(load_recipe(str(recipe), []).stages[0], bpe, template)
            check_parts(prepared)
            return prepared

    return run


def check_parts(prepared: PreparedData) -> None:
    """Both parts say what their samples and their batches hold; no token is in none of them."""
    for part, source in (
        (prepared.ledger["train"], prepared.train),
        (prepared.ledger["validation"], prepared.validation),
    ):
        samples = list(map(as_lists, source.samples)) if source else []
        labels = [sample.labels for sample in samples]
        assert part["samples"] == len(labels)
        assert part["tokens"] == sum(map(len, labels))
        assert part["trained_tokens"] == sum(len(each) - each.count(IGNORED) for each in labels)
        batches = [source.batch(0, index) for index in range(source.num_batches)] if source else []
        assert part["tokens"] == sum(batch.num_tokens for batch in batches)
        assert part["target_tokens"] == sum(batch.num_targets for batch in batches)
        assert part["samples"] == sum(len(batch.cu_seqlens) - 1 for batch in batches)
        in_batches = Counter(token for batch in batches for token in batch.input_ids[0].tolist())
        assert in_batches == Counter(token for sample in samples for token in sample.input_ids)


@PROFILE
@given(files(talks()), files(pairs()), OPTIONS)
def test_every_row_and_token_is_where_plain_counting_puts_it(run, bpe, one, two, options):
    one = [SURE, *one]
    dropped: Counter[str] = Counter()
    kept = truncated = encoded = cut = 0
    for case in (*one, *two):
        if case.reason is not None:
            dropped[case.reason] += 1
            continue
        answers = [learned for role, _, learned in case.turns if role == "assistant"]
        last = max(index for index, learned in enumerate(answers) if learned)
        turns = [(role, content) for role, content, _ in case.turns[: 2 * last + 2]]
        learned = {index for index, flag in enumerate(answers) if flag}
        _, labels = label(bpe, chatml(turns, learned=learned))
        encoded += len(labels)
        if len(labels) <= options["max_length"]:
            kept += 1
        elif options["overlong"] == "drop":
            dropped["overlong"] += 1
            cut += len(labels)
        elif set(labels[1 : options["max_length"]]) == {IGNORED}:
            dropped["no_trained_tokens"] += 1
            cut += len(labels)
        else:
            kept, truncated = kept + 1, truncated + 1
            cut += len(labels) - options["max_length"]
    ledger = run([one, two], options, [1, 1]).ledger
    assert ledger["rows_read"] == len(one) + len(two)
    assert {reason: count for reason, count in ledger["dropped"].items() if count} == dropped
    assert ledger["train"]["rows"] + ledger["validation"]["rows"] == kept
    assert ledger["rows_truncated"] == truncated
    assert (ledger["tokens_encoded"], ledger["tokens_cut"], ledger["tokens_repeated"]) == (encoded, cut, 0)
    assert ledger["train"]["tokens"] + ledger["validation"]["tokens"] == encoded - cut


@PROFILE
@given(files(talks()), files(pairs()), OPTIONS, st.sampled_from([0.5, 1.0, 2.0, 2.5]))
def test_weights_change_how_often_rows_are_seen_and_nothing_else(run, one, two, options, weight):
    plain = run([[SURE, *one], two], options, [1, 1]).ledger
    ledger = run([[SURE, *one], two], options, [1, weight]).ledger
    assert ledger["validation"] == plain["validation"]
    assert ledger["rows_read"] == plain["rows_read"] and ledger["tokens_encoded"] == plain["tokens_encoded"]
    if weight >= 1:
        assert ledger["train"]["rows"] == plain["train"]["rows"] and not ledger["dropped"]["not_sampled"]
        assert ledger["train"]["tokens"] == plain["train"]["tokens"] + ledger["tokens_repeated"]
    else:
        assert ledger["train"]["rows"] == plain["train"]["rows"] - ledger["dropped"]["not_sampled"]
        assert ledger["tokens_repeated"] == 0
