"""The training loop and what it needs: steps, logs, checkpoints, evaluation, signals.

It knows neither transformers nor where the data come from.
"""
