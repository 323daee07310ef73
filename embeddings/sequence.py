"""What is watched next, learnt from the order of plays: a small network from a viewer's newest plays to a vector, and a vector for every
title to compare it with. Pure; `embeddings/kernel_sequence.py` is the compiled twin, `batch/sequence.py` trains it.

With the newest liked plays p = 0, 1, … (at most `PLACES`, newest first), g_p the `GAPS_S` bin of the time from play p to the newest, and
a title's numbers e as a play, o and b as what comes next:

    U_m = Σ_p w[m, p] ∘ v[m, g_p] ∘ e(p)        m = 1 … POOLS: what the places and the gaps leave of each play
    u   = (U_1 + … + U_m) / √POOLS + W2ᵀ max(0, W1ᵀ [U_1; …; U_m] + b1)
    score of title j = o_j · u + b_j

The score is a logarithm of how likely j is next, but for what all titles of a viewer have in common. A title that the network does not know
is zeros: as a play it adds nothing, as a candidate it has no score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import GenerationError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FACTORS, PLACES, POOLS, HIDDEN = 64, 30, 2, 128
"""Sizes: of a title's vectors; of the history; sums over it; units of the middle layer. Another size is another `tables.RULE`."""
GAPS_S = (1, 10, 60, 300, 1_800, 21_600, 86_400, 604_800, 2_592_000)
"""Seconds at which the bins of a gap begin but for the first: a sitting differs from the evening before, that from the month before."""
BINS = len(GAPS_S) + 1
GAPS_MS: I64 = np.array(GAPS_S, np.int64) * 1_000

COLUMNS = 2 * FACTORS + 1
"""Of `SequenceNet.items`: e, o, b."""
_PARTS = (POOLS * PLACES, POOLS * BINS, HIDDEN * POOLS, HIDDEN // FACTORS, HIDDEN)
"""Rows of `SequenceNet.network`: w, v, W1ᵀ, b1, W2."""
ROWS = sum(_PARTS)


@dataclass(frozen=True, eq=False, slots=True, init=False)
class SequenceNet:
    """Made of `items`, (n_items, `COLUMNS`) float32, which is held in three parts that lie as rows are read, and of `network`:
    (`ROWS`, `FACTORS`) float32, its parts one under another."""

    as_play: F32  # (n_items, FACTORS): e
    as_next: F32  # (n_items, FACTORS): o
    bias: F32  # (n_items,): b
    known: NDArray[np.bool_]  # (n_items,)
    network: F32
    places: F32  # (POOLS, PLACES, FACTORS): w
    gaps: F32  # (POOLS, BINS, FACTORS): v
    W1_T: F32  # (HIDDEN, POOLS · FACTORS)
    b1: F32  # (HIDDEN,)
    W2: F32  # (HIDDEN, FACTORS)

    def __init__(self, items: F32, network: F32) -> None:
        e, o, b = (np.ascontiguousarray(part) for part in np.split(items, (FACTORS, 2 * FACTORS), axis=1))
        w, v, W1_T, b1, W2 = np.split(network, np.cumsum(_PARTS)[:-1])
        parts = {
            "as_play": e,
            "as_next": o,
            "bias": b.reshape(-1),
            "known": items.any(axis=1),
            "network": network,
            "places": w.reshape(POOLS, PLACES, FACTORS),
            "gaps": v.reshape(POOLS, BINS, FACTORS),
            "W1_T": W1_T.reshape(HIDDEN, POOLS * FACTORS),
            "b1": b1.reshape(HIDDEN),
            "W2": W2,
        }
        for name, part in parts.items():
            object.__setattr__(self, name, part)

    @property
    def items(self) -> F32:
        """(n_items, `COLUMNS`): put together anew each time."""
        return np.concatenate([self.as_play, self.as_next, self.bias[:, None]], axis=1)

    def of_rows(self, rows: I64, n_rows: int) -> SequenceNet:
        """For a catalogue of `n_rows`: `rows`, (n_items,), says where each item lies in it; what lies beyond it is left out."""
        items = np.zeros((n_rows, COLUMNS), np.float32)
        there = np.flatnonzero(rows[: len(self.bias)] < n_rows)
        items[rows[there]] = self.items[there]
        return SequenceNet(items, self.network)


def make_network(w: F32, v: F32, W1_T: F32, b1: F32, W2: F32) -> F32:
    """`SequenceNet.network` of its parts, in their shapes there."""
    return np.concatenate([part.reshape(-1, FACTORS) for part in (w, v, W1_T, b1, W2)]).astype(np.float32)


def viewer_vector(sequence: SequenceNet, rows: I64, ages_ms: I64) -> F64:
    """(n,) rows of the newest liked plays, n ≤ `PLACES`, newest first, and how much older than the newest each is → (FACTORS,): u."""
    U = _plays(sequence, rows, ages_ms).sum(axis=0)  # (POOLS, FACTORS)
    result: F64 = U.sum(axis=0) / np.sqrt(POOLS) + np.maximum(_middle(sequence, U), 0) @ sequence.W2.astype(np.float64)
    return result


def _plays(sequence: SequenceNet, rows: I64, ages_ms: I64) -> F64:
    """(n, POOLS, FACTORS): what the sums are made of."""
    bins, E = np.searchsorted(GAPS_MS, ages_ms, side="right"), sequence.as_play[rows].astype(np.float64)
    pools = zip(sequence.places, sequence.gaps, strict=True)
    return np.stack([w[: len(rows)].astype(np.float64) * v[bins] * E for w, v in pools], axis=1)


def _middle(sequence: SequenceNet, U: F64) -> F64:
    """(HIDDEN,): the middle layer before what is negative is dropped."""
    result: F64 = sequence.W1_T.astype(np.float64) @ U.reshape(-1) + sequence.b1
    return result


def play_parts(sequence: SequenceNet, rows: I64, ages_ms: I64, row: int) -> F64:
    """(n,): what each play adds to o · u of one title, with the units of the middle layer on or off as all plays together set them."""
    parts = _plays(sequence, rows, ages_ms)
    o = sequence.as_next[row].astype(np.float64)
    on = np.where(_middle(sequence, parts.sum(axis=0)) > 0, sequence.W2.astype(np.float64) @ o, 0)  # (HIDDEN,)
    q = (on @ sequence.W1_T.astype(np.float64)).reshape(POOLS, FACTORS) + o / np.sqrt(POOLS)
    result: F64 = (parts * q).sum(axis=(1, 2))
    return result


def scores(sequence: SequenceNet, u: F64, rows: I64) -> F64:
    """(m,) scores above their mean; 0 for what is not known."""
    known = sequence.known[rows]
    found = sequence.as_next[rows].astype(np.float64) @ u + sequence.bias[rows]
    mean = float(found[known].sum()) / max(1, int(known.sum()))
    result: F64 = np.where(known, found - mean, 0.0)
    return result


def check_sequence(sequence: SequenceNet, n_items: int, where: str) -> None:
    """Shapes and finiteness: the kernel reads it unchecked. Errors: `GenerationError`."""
    titles, shapes = (
        (sequence.as_play, sequence.as_next, sequence.bias),
        [(n_items, FACTORS), (n_items, FACTORS), (n_items,)],
    )
    problems = {
        "the sequence model is of other items": [part.shape for part in titles] != shapes,
        "the sequence model holds NaN or infinity": not all(np.isfinite(part).all() for part in (*titles, sequence.network)),
    }  # fmt: skip
    wrong = [text for text, holds in problems.items() if holds]
    if wrong:
        raise GenerationError(f"{where}: {wrong[0]}; publish the generation again")
