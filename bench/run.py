"""Time pyft's operations beside their peers.

    python bench/run.py --op nf4_linear
    python bench/run.py --op lora_linear --shape T=16,N=4096,K=4096,R=64 --dtype bfloat16
    python bench/run.py --all --json bench/results/my-machine.json
    python bench/run.py --smoke                   # every operation, tiny shapes, seconds

Every contender's result is checked before it is timed. Exit code 1 when a result of pyft's was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import shapes

DTYPES = ("float32", "bfloat16")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Time pyft's operations beside their peers."
    )
    parser.add_argument(
        "--op", choices=sorted(shapes.SHAPES), action="append", help="operation; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="every operation")
    parser.add_argument(
        "--smoke", action="store_true", help="every operation at tiny shapes, a few calls each"
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all of them")
    parser.add_argument(
        "--shape", action="append", metavar="T=16,N=4096", help="instead of the listed shapes"
    )
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each line")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds at least, however long they take (qlora_step: steps)"
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="data_preparation: real rows, alpaca or messages"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="data_preparation: a real tokenizer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    return parser


def device_name(device: str) -> str:
    """The processor's own name where the system tells it."""
    if device == "cpu" and Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run_op(op: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check, time and print every case of one operation.

    Args:
        op: name of the operation, also of its module in cases/.
        options: the parsed command line.

    Returns:
        One row for each line printed, for the results file.
    """
    import timing

    listed = shapes.SMOKE_SHAPES[op] if options.smoke else shapes.SHAPES[op]
    if options.shape:
        listed = [shapes.parse_shape(text, like=listed[0]) for text in options.shape]
    module = importlib.import_module(f"cases.{op}")
    if options.rows or options.tokenizer:
        module.use_files(options.rows, options.tokenizer)
    rows = []
    for shape in listed:
        for dtype in getattr(module, "DTYPES", None) or options.dtype or DTYPES:
            for case in module.build(shape, dtype, options.device):
                budget = 0.0 if options.smoke else options.seconds
                timings = timing.time_case(case, budget_seconds=budget, min_rounds=options.rounds)
                print(timing.format_line(case, timings), flush=True)
                results = {name: vars(result) for name, result in timings.items()}
                rows.append(
                    {"op": op, "label": case.label, "unit": case.unit, "work": case.work, "results": results}
                )
    return rows


def main() -> int:
    """Run the bench.

    Returns:
        0, or 1 when a result of pyft's was wrong.
    """
    parser = build_parser()
    options = parser.parse_args()
    if options.all or (options.smoke and not options.op):
        options.op = list(shapes.SHAPES)
    if not options.op:
        parser.error("say which: --op NAME, --all or --smoke")
    if options.shape and len(options.op) != 1:
        parser.error("--shape goes with one --op")
    if (options.rows or options.tokenizer) and options.op != ["data_preparation"]:
        parser.error("--rows and --tokenizer go with --op data_preparation")
    import peers
    import torch

    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    header = {
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": peers.versions(),
    }
    print(json.dumps(header))
    rows: list[dict[str, Any]] = []
    for op in options.op:
        rows += run_op(op, options)
        if options.json:  # after each operation: a run that is cut short keeps what it has
            text = json.dumps({**header, "rows": rows}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    for name, reason in peers.missing().items():
        print(f"not compared with {name}: {reason}")
    return int(any(row["results"]["pyft"]["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
