"""The generator behind dropout against published vectors, and what a mask must satisfy."""

from __future__ import annotations

import pytest
import torch

from pyft.ops.dropout import draw_seed, dropout_mask, philox_words


def test_philox_gives_the_published_words():
    # Random123's known answers have counter and key both 0 for the first of them
    assert [hex(word) for word in philox_words(1, 0)[0].tolist()] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_philox_wraps_like_unsigned_arithmetic():
    def round_by_round(counter: int, seed: int) -> list[int]:
        words, keys = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
            words = [
                (second >> 32) ^ words[1] ^ keys[0],
                second & 0xFFFFFFFF,
                (first >> 32) ^ words[3] ^ keys[1],
                first & 0xFFFFFFFF,
            ]
            keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return words

    seed = 0x7EDCBA9876543210
    expected = [round_by_round(counter, seed) for counter in range(50)]
    assert philox_words(50, seed).tolist() == expected


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.9])
def test_keep_rate_is_unbiased(dropout):
    mask = dropout_mask((512, 1024), dropout, 1234)
    spread = (dropout * (1 - dropout) / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - (1 - dropout)) < 4 * spread
    # and the same along every row and column, loosely
    for dim in (0, 1):
        share = mask.float().mean(dim)
        assert (share - (1 - dropout)).abs().max() < 6 * (dropout * (1 - dropout) / mask.shape[dim]) ** 0.5


def test_masks_of_neighbouring_seeds_are_unrelated():
    first, second = (dropout_mask((256, 512), 0.5, seed) for seed in (1, 2))
    assert abs((first == second).float().mean().item() - 0.5) < 4 * 0.5 / (256 * 512) ** 0.5


def test_seed_follows_torchs_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = draw_seed(), draw_seed()
    assert first != second
    torch.set_rng_state(state)
    assert [draw_seed(), draw_seed()] == [first, second]
