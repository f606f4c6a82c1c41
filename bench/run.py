"""Time pyft's operations beside their peers.

    python bench/run.py --op nf4_linear
    python bench/run.py --op lora_linear --shape T=16,N=4096,K=4096,R=64 --dtype bfloat16
    python bench/run.py --all --json bench/results/my-machine.json
    python bench/run.py --device cuda --all       # the table of a GPU; --core for what matters most
    python bench/run.py --smoke                   # every operation, tiny shapes, seconds

Every contender's result is checked before it is timed. Exit code 1 when a result of pyft's was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shapes

if TYPE_CHECKING:
    from clocks import CpuClock, CudaClock
    from result_files import Results

DTYPES = ("float32", "bfloat16")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Time pyft's operations beside their peers."
    )
    parser.add_argument(
        "--op", choices=sorted(shapes.SMOKE_SHAPES), action="append", help="operation; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="every operation")
    parser.add_argument(
        "--smoke", action="store_true", help="every operation at tiny shapes, a few calls each"
    )
    parser.add_argument("--core", action="store_true", help="the few shapes that matter most")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="default: all of them, on cuda bfloat16"
    )
    parser.add_argument(
        "--shape", action="append", metavar="T=16,N=4096", help="instead of the listed shapes"
    )
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="one thread's time on the processor, for a CPU that others use too",
    )
    parser.add_argument("--seconds", type=float, help="time spent on each line: 3, on cuda 0.3")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds at least, however long they take (qlora_step: steps)"
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="data_preparation: real rows, alpaca or messages"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="data_preparation: a real tokenizer")
    parser.add_argument(
        "--other", metavar="PYTHON", help="lora_call: an interpreter with another version of pyft"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the results here, and a table beside it; on cuda bench/results/<device>.json",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="time again what the results file has from the same versions"
    )
    return parser


def device_name(device: str) -> str:
    """The processor's own name where the system tells it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def listed_shapes(op: str, options: argparse.Namespace) -> list[shapes.Shape]:
    """List the shapes one operation is run at; none where the device has no case of it."""
    if options.smoke:
        return shapes.SMOKE_SHAPES[op]
    listed = shapes.SHAPES if options.device == "cpu" else shapes.CUDA_SHAPES
    found = (shapes.CORE_SHAPES if options.core else listed).get(op, [])
    return [shapes.parse_shape(text, like=found[0]) for text in options.shape] if options.shape else found


def run_op(op: str, options: argparse.Namespace, clock: CpuClock | CudaClock, results: Results) -> None:
    """Check, time and print every case of one operation that the results do not have yet."""
    import timing

    if not (listed := listed_shapes(op, options)):
        return  # before the module, which may import what only another device's cases need
    module = importlib.import_module(f"cases.{op}")
    if options.rows or options.tokenizer:
        module.use_files(options.rows, options.tokenizer)
    if options.other:
        module.use_other(options.other)
    dtypes = options.dtype or (DTYPES if options.device == "cpu" else ("bfloat16",))
    for shape in listed:
        for dtype in getattr(module, "DTYPES", None) or dtypes:
            for case in module.build(shape, dtype, options.device):
                if results.has(op, case.label):
                    continue
                budget = 0.0 if options.smoke else options.seconds
                timings = timing.time_case(case, clock, budget_seconds=budget, min_rounds=options.rounds)
                print(timing.format_line(case, timings, results.ceilings), flush=True)
                results.add(case, timings)


def main() -> int:
    """Run the bench; return 1 when a result of pyft's was wrong, else 0."""
    parser = build_parser()
    options = parser.parse_args()
    if options.all or options.core or (options.smoke and not options.op):
        options.op = list(shapes.SMOKE_SHAPES)
    if not options.op:
        parser.error("say which: --op NAME, --all, --core or --smoke")
    if options.core and options.device == "cpu":
        parser.error("--core goes with --device cuda")
    if options.shape and len(options.op) != 1:
        parser.error("--shape goes with one --op")
    if (options.rows or options.tokenizer) and options.op != ["data_preparation"]:
        parser.error("--rows and --tokenizer go with --op data_preparation")
    if options.other and options.op != ["lora_call"]:
        parser.error("--other goes with --op lora_call")
    # As pyft's own commands do: threads of torch's OpenMP that spin after one contender's turn would take a
    # core from the next one's.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import clocks
    import peers
    import result_files
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    torch.manual_seed(0)
    if options.processor_time:
        if options.device == "cuda" or options.threads not in (None, 1):
            parser.error("--processor-time goes with --device cpu and one thread")
        options.threads = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.seconds is None:
        options.seconds = 3.0 if options.device == "cpu" else 0.3
    clock = clocks.clock_of(options.device, processor_time=options.processor_time)
    header = {
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if options.processor_time else "time",
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": peers.versions(),
    }
    if options.device == "cuda" and options.json is None and not options.smoke:
        options.json = result_files.default_path(header["device"])
    print(json.dumps(header))
    kept = result_files.Results(options.json, header, clock.ceilings(), fresh=options.fresh)
    if kept.ceilings is not None:
        copied, multiplied = kept.ceilings.copy_bytes / 1e9, kept.ceilings.flops / 1e12
        print(f"ceilings: copy {copied:,.0f} GB/s, bfloat16 products {multiplied:,.0f} TFLOP/s", flush=True)
    for op in options.op:
        run_op(op, options, clock, kept)
    for name, reason in peers.missing().items():
        print(f"not compared with {name}: {reason}")
    return int(any(row["results"]["pyft"]["wrong"] for row in kept.rows))


if __name__ == "__main__":
    sys.exit(main())
