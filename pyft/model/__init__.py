"""Models: load, quantise, adapt, attend over packed rows, save. Architectures come from transformers."""
