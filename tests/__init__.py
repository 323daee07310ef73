import os

# Before numpy is imported: one BLAS thread, as in production (`./run` sets the same).
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
