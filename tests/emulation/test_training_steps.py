"""QLoRA steps of a whole model as on a GPU, beside the same steps on the CPU's kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_waits import Waits
from tiny_models import pack, random_samples, saved_model

from pyft.config.schema import TrainConfig
from pyft.model.adapters import attach_adapters, trainable_state
from pyft.model.heads import head_of
from pyft.model.load import enable_gradient_checkpointing, load_model
from pyft.tasks.next_token import next_token_loss
from pyft.trainer.parameters import TrainedParameters
from pyft.trainer.settings import TrainSettings
from pyft.trainer.totals import Totals

SETTINGS = TrainSettings.of(TrainConfig(learning_rate=1e-2, max_grad_norm=1.0))
# How far losses and adapters may lie apart. Adam divides by the gradient's size, which leaves the sign of
# what bfloat16 rounds away, and the second step begins with that.
DTYPES = {"float32": (torch.float32, 2e-5, 1e-4), "bfloat16": (torch.bfloat16, 5e-3, 8e-2)}


RESULTS = "steps.pt"


def train(folder, dtype):
    """Three steps with dropout: the losses, and the adapters afterwards."""
    torch.manual_seed(0)
    model = load_model(folder, dtype=dtype, quantization="nf4")
    attach_adapters(model, r=4, lora_alpha=8, lora_dropout=0.1, seed=0)
    enable_gradient_checkpointing(model.train())
    parameters = TrainedParameters(model, SETTINGS)
    losses = []
    for seed in range(3):
        loss = next_token_loss(model, pack(random_samples([17, 6], seed=seed)))
        (loss.sum / loss.count).backward()
        parameters.step(SETTINGS.learning_rate, parameters.gradient_norm(), SETTINGS.max_grad_norm)
        losses.append(loss.sum.item() / loss.count)
    return torch.tensor(losses), trainable_state(model)


@pytest.fixture(scope="module", params=DTYPES)
def on_the_cpu(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    saved_model(folder, "llama")
    # On its baseline the CPU rounds weights to bfloat16, as CUDA does; on AVX2 its products are finer.
    command = [sys.executable, __file__, str(folder), request.param]
    search = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYFT_CPU_ISA": "baseline", "PYTHONPATH": search}
    subprocess.run(command, env=environment, check=True)
    return folder, *DTYPES[request.param], torch.load(folder / RESULTS)


def test_steps_are_those_of_the_cpu(on_the_cpu, emulated_ops):
    folder, dtype, loss_tolerance, tolerance, (losses, adapters) = on_the_cpu
    found, trained = train(folder, dtype)
    torch.testing.assert_close(found, losses, rtol=loss_tolerance, atol=0)
    for name, expected in adapters.items():
        difference = (trained[name] - expected).norm() / expected.norm()
        assert difference < tolerance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_waits_for_nothing_but_its_numbers(tmp_path, emulated_ops, monkeypatch, dtype):
    """What runs on a GPU asks it for no value, from the batch to the changed weights, but in `fetch`."""
    saved_model(tmp_path, "llama")
    model = load_model(tmp_path, dtype=dtype, quantization="nf4")
    attach_adapters(model, r=4, lora_alpha=8, lora_dropout=0.1, seed=0)
    enable_gradient_checkpointing(model.train())
    parameters, totals, batch = TrainedParameters(model, SETTINGS), Totals(), pack(random_samples([17, 6]))
    head_of(model)  # probes the model once
    monkeypatch.setattr("pyft.ops.lora.draw_seed", lambda: 7)  # a number of the CPU's, as on a GPU
    with Waits() as waits:
        loss = next_token_loss(model, batch)
        (loss.sum / loss.count).backward()
        totals.add(loss)
        norm = parameters.gradient_norm()
        numbers = totals.fetch(grad_norm=norm)
        parameters.step(SETTINGS.learning_rate, norm, SETTINGS.max_grad_norm)
    assert waits.seen == {}
    assert 0 < numbers["loss"] < 20 and numbers["grad_norm"] > 0


if __name__ == "__main__":  # on the CPU, in a process of its own
    torch.save(train(Path(sys.argv[1]), DTYPES[sys.argv[2]][0]), Path(sys.argv[1]) / RESULTS)
