"""Settings for every test: no network, a cache of its own, threads that sleep while they wait."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
# Prepared data of tests never meet a user's own; the commands that tests start inherit it.
os.environ["PYFT_CACHE_DIR"] = tempfile.mkdtemp(prefix="pyft-test-cache-")
atexit.register(shutil.rmtree, os.environ["PYFT_CACHE_DIR"], ignore_errors=True)
