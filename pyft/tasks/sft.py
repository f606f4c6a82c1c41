"""Supervised fine-tuning: the answers of conversations are learned."""

from __future__ import annotations

from pyft.config.modes import SFT
from pyft.tasks.next_token import NextToken


class Sft(NextToken):
    """Mode sft."""

    mode = SFT
