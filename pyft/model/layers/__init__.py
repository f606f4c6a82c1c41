"""The layers that stand in for a model's own: NF4, LoRA, fused."""
