"""Training: time and memory of the nightly ALS, beside `implicit` called by itself, each in a process of its own.

The night's training *is* `implicit`, with checks before and after; this shows what they cost, and what a round costs for a viewer and a
title. Plays are made up: each viewer has 50, of titles whose popularity is skewed. The whole (1,000,000 viewers × 20,000 titles × 50
million plays) with NEARLINE_FULL=1, which takes long; else a tenth of the viewers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np

from bench.common import load_average
from bench.report import Line, Report, WrongResult, interleave, rounded
from sandbox.processes import ROOT

TITLES = 20_000
PLAYS = 50
ITERATIONS = 2
FACTORS = 64
DEADLINE_S = 3_600.0
FULL = os.environ.get("NEARLINE_FULL") == "1"
VIEWERS = 1_000_000 if FULL else 100_000
REPETITIONS = 1 if FULL else 2
LABELS = {"nearline": "Nearline", "implicit": "implicit alone"}


def run() -> Report:
    """Both, interleaved."""
    load = load_average()
    found = interleave({name: partial(_in_process, name) for name in LABELS}, REPETITIONS)
    lines, figures = [], {}
    interactions = found["nearline"]["interactions"].median
    case = f"{VIEWERS:,} viewers × {TITLES:,} titles, {interactions:,.0f} cells"
    for name, label in LABELS.items():
        for quantity, unit in (
            ("round_s", "s a round"),
            ("core_us", "core-µs a cell and round"),
            ("peak_gib", "GiB at most"),
        ):
            lines.append(Line(case, label, unit, found[name][quantity]))
        prefix = "" if name == "nearline" else "implicit_"
        for quantity in ("round_s", "peak_gib"):
            figures[prefix + quantity] = rounded(found[name][quantity].median)
    figures["core_us_per_interaction_iteration"] = rounded(found["nearline"]["core_us"].median)
    details = {
        "viewers": VIEWERS, "titles": TITLES, "cells": interactions, "k": FACTORS, "rounds": ITERATIONS,
        "repetitions": REPETITIONS, "load_average": load,
    }  # fmt: skip
    return Report("train", f"Training, k = {FACTORS}", lines, {"train": figures}, details)


def _in_process(contender: str) -> dict[str, float]:
    """Memory is that of a process: each run has its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.train", contender, str(VIEWERS)],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise WrongResult(f"training by {contender} failed:\n{done.stderr[-2000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def make_cells(viewers: int) -> Any:
    """(viewers, TITLES) confidences, float32: `PLAYS` plays a viewer, of titles drawn by the square of a uniform number."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(1)
    indices = np.empty(viewers * PLAYS, dtype=np.int32)
    for start in range(0, len(indices), 5_000_000):  # doubles of one slice at a time
        part = indices[start : start + 5_000_000]
        part[:] = rng.random(len(part), dtype=np.float32) ** 2 * TITLES
    np.minimum(indices, TITLES - 1, out=indices)
    Cui = csr_matrix(
        (np.full(len(indices), 11, dtype=np.float32), indices, np.arange(0, len(indices) + 1, PLAYS)),
        shape=(viewers, TITLES),
    )
    Cui.sum_duplicates()
    Cui.data[:] = 11
    return Cui


def main() -> None:
    """Train once and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=list(LABELS))
    parser.add_argument("viewers", type=int)
    options = parser.parse_args()
    Cui = make_cells(options.viewers)
    began, before = time.perf_counter(), time.process_time()
    Y = _nearline(Cui) if options.contender == "nearline" else _implicit(Cui)
    seconds, core_s = time.perf_counter() - began, time.process_time() - before
    if Y.shape != (TITLES, FACTORS) or not np.isfinite(Y).all() or not Y.any():
        raise WrongResult("no factors came out")
    found = {
        "round_s": seconds / ITERATIONS,
        "core_us": core_s * 1e6 / Cui.nnz / ITERATIONS,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "interactions": float(Cui.nnz),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _nearline(Cui: Any) -> Any:
    from batch.train import train_item_factors
    from runtime.settings import TrainSettings

    return train_item_factors(Cui, TrainSettings(factors=FACTORS, iterations=ITERATIONS))


def _implicit(Cui: Any) -> Any:
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=FACTORS, regularization=1.0, alpha=1.0, iterations=ITERATIONS, random_state=20
    )
    model.fit(Cui, show_progress=False)
    return model.item_factors


if __name__ == "__main__":
    main()
