"""An encoder for tests of worker processes, in a module that they can import however pytest was started."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from waiting import wait_until

from pyft.data.prepared.chunk import EncodedChunk
from pyft.data.prepared.counts import Counts


class Orders:
    """In place of an encoder: does what the chunk says."""

    def encode(self, chunk: str, format: str) -> EncodedChunk:
        verb, _, rest = chunk.partition(" ")
        if verb == "sleep":
            time.sleep(float(rest))
        elif verb == "make":
            Path(rest).touch()
        elif verb == "await":
            wait_until(Path(rest).exists, rest)
        elif verb == "exit":
            os._exit(int(rest))
        elif verb == "raise":
            raise ZeroDivisionError(rest)
        elif verb == "modules":
            loaded = Counter(name for name in ("torch", "transformers") if name in sys.modules)
            return EncodedChunk(unused=loaded)
        elif verb == "limits":
            return EncodedChunk(error=str(resource.getrlimit(resource.RLIMIT_AS)[0]))
        return EncodedChunk(Counts(os.getpid()), error=f"{chunk} {format}")
