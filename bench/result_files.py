"""What was measured, on disk: `<device>.json`, written after every case, and the same as a Markdown table.

A run that was cut short continues where it stopped: a case that the file has from the same versions on the
same device is not run again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clocks import Ceilings
from timing import OURS, Case, Timing, share_of_ceiling

FOLDER = Path(__file__).resolve().parent / "results"


def default_path(device: str) -> Path:
    """Return where the results of a device go: `results/nvidia-h100-80gb-hbm3.json` beside this file."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


class Results:
    """Rows of one run, kept in a file where one is given.

    A row is a case: op, label, unit, work, bytes_moved, share_of_ceiling and, for each contender, the fields
    of its Timing. `ceilings` are the device's, as measured by the run that began the file.
    """

    def __init__(
        self, path: Path | None, header: dict[str, Any], ceilings: Ceilings | None, *, fresh: bool = False
    ) -> None:
        """Continue a file of the same device and versions, unless `fresh`."""
        self._path, self._header = path, header
        self.rows: list[dict[str, Any]] = []
        self.ceilings = ceilings
        if path is not None and path.exists() and not fresh:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if all(kept.get(key) == value for key, value in header.items()):
                self.rows = kept["rows"]
                if kept.get("ceilings"):
                    self.ceilings = Ceilings(**kept["ceilings"])

    def has(self, op: str, label: str) -> bool:
        """Whether a case is there."""
        return any(row["op"] == op and row["label"] == label for row in self.rows)

    def add(self, case: Case, timings: dict[str, Timing]) -> None:
        """Keep a case, and write the files."""
        seconds = timings[OURS].graph_seconds or timings[OURS].seconds
        share = None
        if self.ceilings is not None and seconds is not None:
            share = share_of_ceiling(case, seconds, self.ceilings)
        self.rows.append(
            {
                "op": case.op,
                "label": case.label,
                "unit": case.unit,
                "work": case.work,
                "bytes_moved": case.bytes_moved,
                "share_of_ceiling": share,
                "results": {name: vars(timing) for name, timing in timings.items()},
            }
        )
        if self._path is None:
            return
        ceilings = None if self.ceilings is None else asdict(self.ceilings)
        text = json.dumps({**self._header, "ceilings": ceilings, "rows": self.rows}, indent=1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(text + "\n", encoding="utf-8")
        self._path.with_suffix(".md").write_text(self._table(), encoding="utf-8")

    def _table(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self._header["versions"].items())
        lines = [f"# {self._header['device']}", "", versions + "."]
        if self._header.get("clock") == "processor time":
            lines += ["", "One thread's time on the processor, which others used too."]
        if self.ceilings is not None:
            lines += [
                "",
                f"Ceilings measured in the same run: copy {self.ceilings.copy_bytes / 1e9:,.0f} GB/s, "
                f"bfloat16 products {self.ceilings.flops / 1e12:,.0f} TFLOP/s. Medians; of a CUDA graph "
                "where there is one; `x` is how many times pyft's time a peer takes.",
            ]
        lines += [
            "",
            "| operation | case | pyft, us | of ceiling | peak, MB | peers |",
            "|---|---|---:|---:|---:|---|",
        ]
        return "\n".join(lines + [_table_row(row) for row in self.rows]) + "\n"


def _table_row(row: dict[str, Any]) -> str:
    ours = row["results"][OURS]
    if ours["wrong"]:
        return f"| {row['op']} | {row['label']} | wrong result | | | |"
    share = row["share_of_ceiling"]
    peers = []
    for name, timing in row["results"].items():
        if name == OURS:
            continue
        ratio, memory = timing["graph_ratio"] or timing["ratio"], timing["peak_bytes"]
        what = "wrong result" if timing["wrong"] else f"x{ratio:.2f}" if ratio else "not timed"
        peers.append(f"{name} {what}" + (f" ({memory / 1e6:,.0f} MB)" if memory else ""))
    cells = [
        row["op"],
        row["label"],
        f"{(ours['graph_seconds'] or ours['seconds']) * 1e6:,.1f}",
        f"{share:.0%}" if share else "",
        f"{ours['peak_bytes'] / 1e6:,.0f}" if ours["peak_bytes"] else "",
        ", ".join(peers),
    ]
    return f"| {' | '.join(cells)} |"
