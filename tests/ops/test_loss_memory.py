"""linear_cross_entropy's memory: logits that nobody counts are never made, and those that count in panels."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMON = """
import torch
from pyft.model.peak_memory import peak_memory_bytes, reset_peak_memory

torch.set_num_threads(2)
num_tokens, width, vocabulary = 512, 896, 20000
generator = torch.Generator().manual_seed(0)
hidden = torch.randn(num_tokens, width, generator=generator, requires_grad=True)
head = torch.randn(vocabulary, width, generator=generator)
targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
targets[torch.randperm(num_tokens, generator=generator)[: num_tokens * 3 // 4]] = -100

def report(loss_of):
    if not reset_peak_memory():
        print("cannot reset")
        return
    before = peak_memory_bytes()
    loss_of().backward()
    print(peak_memory_bytes() - before, hidden.grad.norm().item())
"""
OURS = """
from pyft.ops.linear_cross_entropy import linear_cross_entropy

report(lambda: linear_cross_entropy(hidden, head, targets))
"""
THEIRS = """
from transformers.loss.loss_utils import ForCausalLMLoss

report(
    lambda: ForCausalLMLoss(
        hidden @ head.T, None, vocabulary, num_items_in_batch=1, shift_labels=targets
    )
)
"""


def measure(code: str) -> tuple[float, float]:
    """Peak bytes above the inputs of one forward and backward in a fresh process; the gradient's norm."""
    done = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("cannot"):
        pytest.skip("this system does not reset a process's peak memory")
    added, norm = map(float, done.stdout.split())
    return added, norm


def test_a_mostly_masked_loss_takes_a_fifth_of_transformers_memory():
    ours, norm = measure(OURS)
    theirs, expected_norm = measure(THEIRS)
    assert norm == pytest.approx(expected_norm, rel=1e-4)
    # stored logits of every token are 41 MB, and their gradients as much again
    assert theirs > 80e6
    assert ours <= theirs / 5
