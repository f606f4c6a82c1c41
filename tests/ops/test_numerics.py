"""The tolerance rule refuses what it must refuse."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, poisoned_empty


@pytest.fixture
def product():
    """A product in float64 and by torch in float32."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(33, 257, generator=generator, dtype=torch.float64)
    b = torch.randn(257, 19, generator=generator, dtype=torch.float64)
    return a.float().double() @ b.float().double(), a.float() @ b.float()


def test_accepts_torchs_own_result(product):
    reference, torchs = product
    assert_close_to_reference(torchs.clone(), reference, torchs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_a_single_non_finite_value(product, value):
    reference, torchs = product
    broken = torchs.clone()
    broken[7, 3] = value
    with pytest.raises(AssertionError, match=r"dX: 1 values differ in being finite, first at \(7, 3\)"):
        assert_close_to_reference(broken, reference, torchs, name="dX")


def test_refuses_a_finite_value_where_the_reference_is_infinite(product):
    reference, torchs = product
    expected = reference.clone()
    expected[2, 2] = float("inf")
    with pytest.raises(AssertionError, match="being finite"):
        assert_close_to_reference(torchs, expected, torchs)
    infinite = torchs.clone()
    infinite[2, 2] = float("inf")
    assert_close_to_reference(infinite, expected, infinite)
    infinite[2, 2] = float("-inf")
    with pytest.raises(AssertionError, match="being finite"):
        assert_close_to_reference(infinite, expected, infinite)


def test_refuses_one_wrong_entry(product):
    reference, torchs = product
    broken = torchs.clone()
    broken[32, 18] += 1e-3
    with pytest.raises(AssertionError, match="max error"):
        assert_close_to_reference(broken, reference, torchs)


def test_refuses_a_small_error_everywhere(product):
    reference, torchs = product
    spread = (torchs - reference).abs().max()
    with pytest.raises(AssertionError, match="mean error"):
        assert_close_to_reference((reference + 1.5 * spread).float(), reference, torchs)


def test_refuses_other_shapes_and_dtypes(product):
    reference, torchs = product
    with pytest.raises(AssertionError, match="shape"):
        assert_close_to_reference(torchs[:1], reference, torchs)
    with pytest.raises(AssertionError, match="dtype"):
        assert_close_to_reference(torchs.double(), reference, torchs)
    with pytest.raises(AssertionError, match="not float64"):
        assert_close_to_reference(torchs, reference.float(), torchs)


def test_refuses_a_comparison_with_a_broken_peer(product):
    reference, torchs = product
    broken = torchs.clone()
    broken[0, 0] = float("inf")
    with pytest.raises(AssertionError, match="torch's own"):
        assert_close_to_reference(torchs, reference, broken)


def test_poisoned_empty_hands_out_nan_and_is_undone():
    with pytest.MonkeyPatch.context() as patch:
        poisoned_empty(patch)
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(3)).isnan().all()
        assert torch.zeros(2).new_empty(3).isnan().all()
        assert (torch.empty(2, dtype=torch.uint8) == 255).all()
    assert torch.zeros(2).add(1).eq(1).all()
