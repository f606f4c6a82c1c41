"""csrc/README.md draws the folders as they are: all it names exists, and every file is in the drawing."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
README = CSRC / "README.md"


def alternatives(pattern: str) -> list[str]:
    """Expand a{b,c}d to abd and acd."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in product(*parts)]


def drawn(readme: str) -> dict[str, set[Path]]:
    """Return each pattern of the first drawing, with its folder, and the files that it names."""
    found, folder = {}, CSRC
    for line in readme.split("```")[1].strip("\n").split("\n"):
        if not line.startswith(" "):
            folder = CSRC / line.split()[0]
            continue
        # patterns come first, each two blanks from the last; a text stands further off, or deeper
        for pattern in re.match(r" {4}(\S+(?: {1,2}\S+[.*]\S*)*)|", line)[0].split():
            for one in alternatives(pattern):
                found[f"{folder.relative_to(CSRC)}/{one}"] = set(folder.glob(one))
    return found


def test_the_drawing_is_that_of_the_folders():
    patterns = drawn(README.read_text("utf-8"))
    assert [name for name, files in patterns.items() if not files] == []
    files = {path for path in CSRC.rglob("*") if path.is_file()} - {README}
    assert sorted(str(path) for path in files.difference(*patterns.values())) == []


def test_files_named_in_the_text_exist():
    text = README.read_text("utf-8").split("```", 2)[2]
    folders = "csrc|cpu|cuda|dispatch|bindings|emulation|include|pyft|tests|bench"
    named = re.findall(rf"(?<![\w/<*])(?:{folders})/[\w/]+\.(?:h|cpp|cu|py)\b", text)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists() and not (CSRC / name).exists()] == []


def test_a_file_that_is_gone_or_new_shows():
    readme = README.read_text("utf-8")
    assert drawn(readme.replace("    info.h ", "    gone.h "))["include/pyft/gone.h"] == set()
    without = drawn(readme.replace("  nf4_small.h", "", 1))
    assert CSRC / "include/pyft/nf4_small.h" not in set().union(*without.values())
