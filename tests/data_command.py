"""`python -m pyft.data` on a recipe whose data, cache and results all lie in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from pyft.command import run_command
from pyft.data.__main__ import main, make_parser

GOOD = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("who?", "the river"), ("how high?", "42 metres"), ("世界?", "珠穆朗玛峰"))
]


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def between(bad: bytes) -> bytes:
    """A jsonl file with the bad line as its second, among good ones."""
    return b"\n".join([line(GOOD[0]), bad, line(GOOD[1]), line(GOOD[2])]) + b"\n"


class Command:
    """Runs `python -m pyft.data` on a recipe; everything it may write lies in one folder."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        self.cache, self.output = folder / "cache", folder / "runs" / "out"
        self.recipe = {
            "mode": "sft",
            "model": {"name_or_path": str(folder), "tokenizer": str(tokenizer), "template": "default"},
            "data": {
                "train": [{"path": str(folder / "data.jsonl")}],
                "val_size": 0,
                "cache_dir": str(self.cache),
            },
            "train": {"output_dir": str(self.output)},
        }

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.recipe["data"]["train"] = [{"path": str(path)}]
        return path

    def arguments(self, *overrides: str) -> list[str]:
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(self.recipe), encoding="utf-8")
        return [str(path), "--json", *overrides]

    def run(self, *overrides: str) -> int:
        return run_command(main, make_parser(), self.arguments(*overrides))

    def files_left(self) -> list[Path]:
        """Files that a run wrote: finished cache entries, halves, results."""
        return [path for root in (self.cache, self.output) for path in root.rglob("*") if path.is_file()]

    def check_failure(self, capsys, code: int, *overrides: str, prepared: bool = False) -> str:
        """Run it, expecting an error of one line and nothing left behind; gives the line.

        `prepared` says that the rows themselves were all right, so that what was made of them may be kept.
        """
        assert self.run(*overrides) == code
        out, err = capsys.readouterr()
        assert out == ""
        (only,) = err.splitlines()
        assert only.startswith("error: ") and "Traceback" not in only
        assert ": " in only.removeprefix("error: ")
        assert prepared or not self.files_left()
        assert not self.output.exists()
        return only
