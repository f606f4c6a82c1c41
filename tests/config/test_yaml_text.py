"""The strict YAML reader: what it refuses and where, what it reads as what, and that writing round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pyft.config.yaml_text import dump_yaml, parse_text, parse_value, read_document
from pyft.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_text(text, "r.yaml")
    assert len(caught.value.messages) == 1
    return caught.value.messages[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("2.5e3", 2500.0),
        ("-1e+2", -100.0),
        (".5e1", 5.0),
        ("1.0e-05", 1e-5),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1e5x", "1e5x"),
        ("12", 12),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e-5'", "1e-5"),
        ("[1, 2]", [1, 2]),
        ("世界", "世界"),
    ],
)
def test_scalars_in_files_and_overrides(text: str, value: object) -> None:
    in_file = parse_text(f"key: {text}\n", "r.yaml").data["key"]
    in_override = parse_value(text, "command line")
    assert in_file == value and type(in_file) is type(value)
    assert in_override == value and type(in_override) is type(value)


def test_lines_of_keys_and_entries() -> None:
    document = parse_text("a:\n  b: 1\n  c:\n    - x\n    - d: 2\n", "r.yaml")
    assert document.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
    }


def test_equal_keys_name_file_and_both_lines() -> None:
    message = refusal("train:\n  seed: 1\n  lr: 2\n  seed: 3\n")
    assert "train.seed" in message and "line 2" in message and "r.yaml:4:3" in message


def test_all_equal_keys_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_text("a: 1\na: 2\nb: {c: 1, c: 2}\n", "r.yaml")
    assert len(caught.value.messages) == 2


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("a: [1, 2\nb: 3\n", "r.yaml:2:2", "close the quote or bracket"),
        ("a: b: c\n", "r.yaml:1:5", "indentation"),
        ("a:\n\t- b\n", "r.yaml:2:1", "spaces"),
        ("a: 'x\n", "r.yaml:2:1", "close the quote"),
        ("a: *x\n", "r.yaml:1:4", "quotes"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1", "one recipe per file"),
        ("a: 1\nb: \x07\n", "r.yaml:2:4", "U+0007"),
        ("a: !!python/object/apply:os.system ['true']\n", "r.yaml:1:4", "!!python/object/apply:os.system"),
        ("a: !mine {}\n", "r.yaml:1:4", "tag !mine"),
        ("a: !!set {x}\n", "r.yaml:1:4", "!!set"),
        ("1: x\n", "r.yaml:1:1", "'1' is read as int"),
        ("on: x\n", "r.yaml:1:1", "'on' is read as bool"),
        ("? [a]\n: x\n", "r.yaml:1:3", "has to be text"),
        ("a: !!int x\n", "r.yaml:1:4", "not a valid int"),
        ("a: !!bool x\n", "r.yaml:1:4", "not a valid bool"),
        (f"a: {'9' * 5000}\n", "r.yaml:1:4", "not a valid int"),
        ('a: "\\ud800"\n', "r.yaml:1:4", "surrogate"),
        ("a: &a 1\n<<: *a\n", "r.yaml:1:4", "merges mappings only"),
    ],
)
def test_refusals_say_where_and_what(text: str, place: str, part: str) -> None:
    message = refusal(text)
    assert f"({place})" in message
    assert part in message


def test_python_tags_run_nothing(tmp_path: Path) -> None:
    refusal(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert not (tmp_path / "made").exists()


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: {z: 2}}\nother: &o {x: 9, w: 8}\nown: {<<: [*b, *o], x: 5}\nsame: *b\n"
    assert parse_text(text, "r.yaml").data == yaml.safe_load(text)


def test_aliases_share_nothing() -> None:
    data = parse_text("a: &a [1]\nb: *a\n", "r.yaml").data
    data["a"].append(2)
    assert data["b"] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 2000,
        "- " * 3000 + "x",
        "a: &a [*a]\n",
        "a: &a {<<: *a}\n",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        "a0: &a0 {k: 1, l: 2}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)),
    ],
    ids=["lists", "mappings", "entries", "self", "self-merge", "aliases", "merges"],
)
def test_bombs_are_refused_before_they_grow(text: str) -> None:
    """Unbounded, the last two take all memory."""
    refusal(text)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("schön: ü".encode("latin-1"), "not UTF-8"),
        (b"a: 1\nb: \xff\n", "bad.yaml:2)"),
        (b"x" * (1 << 21), "larger than"),
    ],
)
def test_unreadable_contents(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        read_document(path)
    assert part in caught.value.messages[0]


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert read_document(path).data == {"a": 1, "b": "x"}


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_document(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_document(tmp_path)


def test_a_comment_would_cut_an_override() -> None:
    with pytest.raises(ConfigError, match="comment"):
        parse_value("run #3", "command line")
    assert parse_value("run#3", "command line") == "run#3"
    assert parse_value("'run #3'", "command line") == "run #3"


def test_written_text_reads_the_same_here_and_elsewhere() -> None:
    shared = [1, 2]
    value = {
        "text": [
            "1e-5",
            "1.5",
            "true",
            "null",
            "2024-01-01",
            "12:30",
            "a: b",
            "#",
            "=",
            "",
            " x ",
            "é世界",
            "~",
        ],
        "numbers": [1e-5, 1.0, 1e300, 0.1, -3, 0],
        "others": [None, True, False, {}, []],
        "shared": [shared, shared],
    }
    text = dump_yaml(value)
    assert yaml.safe_load(text) == value
    assert parse_text(text, "r.yaml").data == value
    assert "世界" in text and "&" not in text
