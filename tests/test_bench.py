"""The harness of bench/: no time for what is wrong, results taken up again, ceilings and graphs told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
HEADER = {"device": "Some GPU", "versions": {"pyft": "0.1.0"}}


@pytest.fixture
def bench(monkeypatch):
    """The harness's modules, importable as they are for bench/run.py."""
    monkeypatch.syspath_prepend(str(BENCH))
    import clocks
    import result_files
    import timing

    class Clock(clocks.CpuClock):
        """A GPU's, that says how long work takes by what the work returns."""

        def seconds(self, work):
            return work()

        def capture(self, work):
            return (lambda: work() / 2) if work() < 1 else "it waits"

        def peak_bytes(self, work):
            return 1000

    monkeypatch.setattr(clocks, "clock_of", lambda device: Clock())
    yield timing, result_files, clocks
    for name in ("clocks", "result_files", "timing"):
        sys.modules.pop(name, None)


def make_case(timing, label="fwd", check=lambda name, result: None, **more):
    contenders = {"pyft": lambda: 1e-3, "peer": lambda: 4e-3, "slow": lambda: 2.0}
    return timing.Case("op", label, contenders, check, 1e9, "GFLOP/s", **more)


def run(bench, case):
    timing, _, clocks = bench
    return timing.time_case(case, clocks.clock_of("cuda"), budget_seconds=0.0, min_rounds=3)


def test_contenders_are_compared_eagerly_and_as_graphs(bench):
    timing, _, _ = bench
    case = make_case(timing, yardsticks={"yardstick": lambda: 5e-4})
    found = run(bench, case)
    assert found["pyft"].seconds == 1e-3 and found["pyft"].graph_seconds == 5e-4
    assert found["peer"].ratio == pytest.approx(4) and found["peer"].graph_ratio == pytest.approx(4)
    assert found["slow"].graph_seconds is None and found["slow"].no_graph == "it waits"
    assert found["yardstick"].ratio == pytest.approx(0.5)
    line = timing.format_line(case, found)
    assert "pyft 1,000 us 1,000.0 GFLOP/s, graph 500 us" in line and "peer 4,000 us x4.00" in line


def test_a_wrong_result_gets_no_time(bench):
    timing, _, _ = bench
    case = make_case(timing, check=lambda name, result: "off by one" if name == "peer" else None)
    found = run(bench, case)
    assert found["peer"].seconds is None and found["peer"].graph_seconds is None
    assert "peer: WRONG RESULT, not timed (off by one)" in timing.format_line(case, found)


def test_work_of_another_process_times_itself(bench):
    _, _, clocks = bench

    class Remote(clocks.Elsewhere):
        def seconds(self, clock):
            return {"perf_counter": 1.0, "process_time": 2.0}[clock]

    assert clocks.CpuClock().seconds(Remote()) == 1.0
    assert clocks.CpuClock(processor_time=True).seconds(Remote()) == 2.0


def test_processor_time_leaves_out_what_waits(bench):
    _, _, clocks = bench
    waits = lambda: time.sleep(0.05)  # noqa: E731
    assert clocks.CpuClock().seconds(waits) >= 0.05
    assert clocks.CpuClock(processor_time=True).seconds(waits) < 0.04


def test_the_share_of_the_ceiling_is_of_the_longer_floor(bench):
    timing, _, clocks = bench
    ceilings = clocks.Ceilings(copy_bytes=1e9, flops=1e12)
    by_flops = make_case(timing)
    by_bytes = make_case(timing, bytes_moved=1e7)
    assert timing.share_of_ceiling(by_flops, 2e-3, ceilings) == pytest.approx(0.5)
    assert timing.share_of_ceiling(by_bytes, 2e-2, ceilings) == pytest.approx(0.5)


def test_a_run_goes_on_where_it_stopped(bench, tmp_path):
    timing, result_files, clocks = bench
    path, ceilings = tmp_path / "some-gpu.json", clocks.Ceilings(1e9, 1e12)
    first = result_files.Results(path, HEADER, ceilings)
    case = make_case(timing)
    first.add(case, run(bench, case))
    again = result_files.Results(path, HEADER, clocks.Ceilings(2e9, 2e12))
    assert again.has("op", "fwd") and not again.has("op", "bwd")
    assert again.ceilings == ceilings
    other = {**HEADER, "versions": {"pyft": "0.2.0"}}
    assert result_files.Results(path, other, ceilings).rows == []
    assert result_files.Results(path, HEADER, ceilings, fresh=True).rows == []
    table = path.with_suffix(".md").read_text()
    assert "| op | fwd | 500.0 | 200% | 0 | peer x4.00 (0 MB), slow x2000.00 (0 MB) |" in table
    assert json.loads(path.read_text())["rows"][0]["results"]["slow"]["no_graph"] == "it waits"


def test_results_files_are_named_after_the_device(bench):
    assert bench[1].default_path("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_without_a_gpu_cuda_is_refused():
    done = subprocess.run(
        [sys.executable, BENCH / "run.py", "--device", "cuda", "--core"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and "--device cuda: torch sees no CUDA device" in done.stderr


def test_the_check_of_a_gpu_names_tests_that_there_are():
    """No machine without a GPU runs it, so that nothing else would show a name that is gone."""
    script = (BENCH / "gpu_check.sh").read_text(encoding="utf-8")
    paths = [
        BENCH.parent / path for path in re.findall(r'"?\$root"?/([\w/.]+)', script) if "results" not in path
    ]
    assert len(paths) > 2 and all(path.exists() for path in paths), paths
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (BENCH.parent / "tests" / "ops").glob("*.py")
    )
    names = re.search(r'^small="(.+)"$', script, re.M)[1].split(" or ")
    assert [name for name in names if f"def {name}(" not in tests] == []
