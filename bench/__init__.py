"""Side-by-side measurements: `python -m bench` (see README.md)."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy: every contender gets one BLAS thread, as it would beside others
