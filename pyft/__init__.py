"""pyft: fine-tune language models on one GPU, or none.

Importing this package imports nothing else: `python -m pyft.train --help` and configuration errors answer
before torch is loaded.
"""

__version__ = "0.1.0"
