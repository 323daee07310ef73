"""`python -m viewers.precompile`: compile the kernels now, so that the first updater on this machine need not."""

from __future__ import annotations

import gc
import sys
import time

from embeddings.compiled import cache_folder, one_at_a_time
from viewers.kernel import Framing, Kernel, Todo
from viewers.play_reader import PlayReader
from viewers.state import Limits


def compile_kernels() -> None:
    """Compile them, or load what has been compiled before."""
    with one_at_a_time():
        Kernel(None, Limits()).rewrite([Todo(b"", (), True, None)], Framing(0, b"-", b"-", b"-"))
        PlayReader(b"-").warm()


def main() -> None:
    """Say how long it took, and where it is kept."""
    started = time.monotonic()
    # The compiler's many small objects are walked less often: a twentieth of the time.
    gc.set_threshold(100_000, 20, 100)
    compile_kernels()
    kept = cache_folder() or "nowhere: no cache folder can be written, so every process compiles for itself"
    sys.stderr.write(f"nearline: kernels ready after {time.monotonic() - started:.1f} s, kept in {kept}\n")


if __name__ == "__main__":
    main()
