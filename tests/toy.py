"""A model, data and a run so small that a test can do it many times, and do it again in another process."""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyft.config.modes import Mode
from pyft.config.schema import TrainConfig
from pyft.errors import PyftError
from pyft.run.lock import claim_folder
from pyft.run.resume import plan_run
from pyft.tasks.perplexity import perplexity
from pyft.tasks.task import Loss, Task
from pyft.trainer.console import Console
from pyft.trainer.loop import Trainer
from pyft.trainer.questions import Completion, Question
from pyft.trainer.record import TrainResult
from pyft.trainer.settings import TrainSettings

VOCABULARY = 11
WIDTH = 8
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ToyBatch:
    input_ids: Tensor
    targets: Tensor
    num_targets: int
    num_tokens: int


def toy_batch(seed: int, num_tokens: int, num_targets: int) -> ToyBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (1, num_tokens), generator=generator)
    targets = ids.roll(-1, 1)
    masked = torch.randperm(num_tokens, generator=generator)[num_targets:]
    targets[0, masked] = -100
    return ToyBatch(ids, targets, num_targets, num_tokens)


class ToySource:
    """Unequal batches; `empty` ones have no target. Every epoch draws its own."""

    def __init__(
        self, num_batches: int, *, empty: Sequence[int] = (), before_batch: Callable[[int], None] = id
    ):
        self.num_batches = num_batches
        self._empty = empty
        self._before_batch = before_batch

    def batch(self, epoch: int, index: int) -> ToyBatch:
        self._before_batch(index)
        num_targets = 0 if index in self._empty else 2 + (index * 5 + epoch) % 9
        return toy_batch(1000 * epoch + index, 13, num_targets)


class ToyModel(nn.Module):
    def __init__(self, *, dropout: float = 0.2, dtype: torch.dtype = torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
            self.dense = nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.dropout = dropout
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids.reshape(-1))
        x = x + self.frozen(torch.tanh(self.dense(F.dropout(x, self.dropout, self.training))))
        return self.head(x)


def toy_loss(model: ToyModel, batch: ToyBatch) -> Loss:
    logits = model(batch.input_ids).float()
    loss = F.cross_entropy(logits, batch.targets.reshape(-1), ignore_index=-100, reduction="sum")
    return Loss(loss, batch.num_targets)


class ToyTask(Task):
    mode = Mode("toy", "texts")

    def __init__(self, objective: Callable[[ToyModel, ToyBatch], Loss] = toy_loss):
        self._objective = objective

    def objective(self, model: ToyModel, batch: ToyBatch) -> Loss:
        return self._objective(model, batch)

    def evaluation_metrics(self, loss: float) -> dict[str, float]:
        return {"perplexity": perplexity(loss)}


def greedy(model: ToyModel) -> Callable[[list[int]], Completion]:
    """Answer with three ids, and draw random numbers on the way as a sampler would."""

    def generate(input_ids: list[int]) -> Completion:
        torch.rand(5)
        ids = list(input_ids)
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids]))[-1].argmax()))
        return Completion(" ".join(map(str, ids[len(input_ids) :])), stopped=ids[-1] == 0)

    return generate


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def weights_io(model: nn.Module) -> dict[str, Callable[[Path], None]]:
    def save(folder: Path) -> None:
        save_file(
            {name: p.contiguous() for name, p in trained(model).items()}, folder / "weights.safetensors"
        )

    def load(folder: Path) -> None:
        saved = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved.pop(name))
        assert not saved

    return {"save_weights": save, "load_weights": load}


SMALL = {
    "max_steps": 8,
    "gradient_accumulation_steps": 2,
    "eval_steps": 3,
    "save_steps": 2,
    "learning_rate": 0.02,
}


def toy_trainer(
    folder: Path,
    *,
    resume: str | Path | None = "auto",
    model: ToyModel | None = None,
    identity: dict[str, Any] | None = None,
    source: ToySource | None = None,
    validation: ToySource | None = None,
    questions: bool = True,
    settings: dict[str, Any] | None = None,
    **others: Any,
) -> tuple[Trainer, ToyModel]:
    folder.mkdir(parents=True, exist_ok=True)
    model = model or ToyModel()
    source = source or ToySource(7)
    numbers = TrainSettings.of(TrainConfig(**{**SMALL, **(settings or {})}))
    plan = plan_run(
        folder,
        resume,
        numbers.total_steps(source.num_batches),
        {**(identity or {"model": {"sha": "a"}, "seed": 1}), "train": numbers.identity()},
    )
    return Trainer(
        model=model,
        task=others.pop("task", None) or ToyTask(others.pop("objective", toy_loss)),
        train=source,
        validation=validation or ToySource(3),
        settings=numbers,
        plan=plan,
        folder=folder,
        stage="toy",
        questions=[Question("one?", [1, 2]), Question("two?", [3])] if questions else [],
        generate=others.pop("generate", None) or greedy(model),
        **{**weights_io(model), **others},
    ), model


def toy_run(folder: Path, **options: Any) -> tuple[TrainResult, ToyModel]:
    trainer, model = toy_trainer(folder, **options)
    return trainer.run(), model


def rows(folder: Path, name: str = "trainer_log.jsonl") -> list[dict[str, Any]]:
    """The rows of a log without what a clock or a memory meter wrote."""
    measured = ("per_second", "seconds", "time", "memory")
    return [
        {key: value for key, value in json.loads(line).items() if not any(mark in key for mark in measured)}
        for line in (folder / name).read_text().splitlines()
    ]


def same_run(one: Path, other: Path) -> None:
    """Assert that two folders hold the same run: logs, samples, and the last checkpoint to the bit."""
    assert rows(one) == rows(other)
    assert rows(one, "samples.jsonl") == rows(other, "samples.jsonl")
    last = max(one.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    for name in ("weights.safetensors", "optimizer.safetensors", "rng_state.safetensors"):
        assert (one / last / name).read_bytes() == (other / last / name).read_bytes(), name


class Forge:
    """Runs toy runs in processes of their own: one interpreter imports everything once and forks for each.

    A job is the options of `toy_run` that JSON can hold, with `folder`, and, if wanted: `fault` (PYFT_FAULT),
    `max_file_bytes` (RLIMIT_FSIZE), `umask`, `hang` (in a C call), `pause_after` (so many batches: it prints
    "paused" and waits for `go_on`), `long_validation` (20 batches), `pause_validation_after`.
    """

    def __init__(self, outputs: Path):
        self._outputs = outputs
        self._num_jobs = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, **job: Any) -> tuple[int, Path]:
        """Start a job; gives its process id and the file of what it prints."""
        self._num_jobs += 1
        output = self._outputs / f"{self._num_jobs}.txt"
        return self._ask({**job, "output": str(output)}), output

    def go_on(self, output: Path) -> None:
        """Let a paused job continue; `output` as `start` gave it."""
        output.with_suffix(".go").touch()

    def wait(self, pid: int) -> int:
        """Give the exit code of a job, negative for a signal."""
        return self._ask({"wait": pid})

    def run(self, **job: Any) -> int:
        """Run a job to its end."""
        return self.wait(self.start(**job)[0])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> int:
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _pausing(num_batches: int | None, go: Path) -> Callable[[int], None]:
    batches = itertools.count()

    def before_batch(index: int) -> None:
        if next(batches) == num_batches:
            print("paused", flush=True)
            while not go.exists():
                time.sleep(0.01)

    return before_batch


def _hang(model: ToyModel, batch: ToyBatch) -> None:
    """Never returns, nor runs another instruction of Python, so no handler either."""
    print("hanging", flush=True)
    mutex = ctypes.create_string_buffer(64)  # all zero: an unlocked pthread_mutex_t
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def _run_job(job: dict[str, Any]) -> int:
    if fault := job.pop("fault", None):
        os.environ["PYFT_FAULT"] = fault
    if max_bytes := job.pop("max_file_bytes", None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    if (umask := job.pop("umask", None)) is not None:
        os.umask(umask)
    go = Path(job.pop("output")).with_suffix(".go")
    job["source"] = ToySource(7, before_batch=_pausing(job.pop("pause_after", None), go))
    if job.pop("long_validation", False):
        pause = _pausing(job.pop("pause_validation_after", None), go)
        job["validation"] = ToySource(20, before_batch=pause)
    folder = Path(job.pop("folder"))
    if job.pop("hang", False):
        job["objective"] = _hang
    try:
        if job.pop("lock", False):
            with claim_folder(folder):
                toy_run(folder, **job)
        else:
            toy_run(folder, **job)
    except PyftError as error:
        print("\n".join(f"error: {message}" for message in error.messages))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _fork(job: dict[str, Any]) -> int:
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT)
    child = os.fork()
    if child > 0:
        os.close(output)
        return child
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 70
    try:
        code = _run_job(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # no thread pool, which a fork would lose
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        toy_run(Path(folder), settings={"max_steps": 1}, console=Console(out=io.StringIO()))
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = _fork(request)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _serve()
