"""What is watched after what, and what is watched lately: counted play by play, so that a later night only adds what came since.

Co-watch: a play of item i counts for every item j among the viewer's next plays, by how far behind it comes (`WEIGHTS`): mixed, less the
later it comes; the next play; the two after it; the seven after those. (Older pairs count as much as newer ones: half-lives from 14 to
180 days were no better.) With n_ij such a sum, n_i = Σ_j n_ij, and p_j the share of j among all that followed anything:

    share_ij = n_ij / (n_i + s), of the mixed        lift_ij = log(1 + n_ij / (s · p_j)), of each

`lift` is the naive-Bayes evidence of i for j, with s plays' worth of "like anything else" added: a pair seen once says little. Kept are
the `FOLLOWERS` most frequent of each item: the rarest that stand out most would be noise. The constants were chosen on the share of
plays before the one that docs/evaluation.md reports.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from batch.play_log import PlayLog
from embeddings.sequence import SequenceNet
from embeddings.tables import F32, F64, HALF_LIVES_DAYS, I64, STEPS, Cowatch, Tables

DAY_MS = 86_400_000
WEIGHTS = ((1.0, 0.7, 0.5), (1.0,), (0.0, 1.0, 1.0), (0.0,) * 3 + (1.0,) * 7)
"""For each of `embeddings.tables.STEPS`, the weight of the next play, the one after it, …"""
SMOOTHING = (100.0, 50.0, 100.0, 300.0)
"""s of each, in plays."""
FOLLOWERS = 128
"""Kept of each item."""
AT_ONCE = 400_000
"""Plays counted at once: some 100 MB."""


class Counts:
    """Counts over the first `counted` plays of a log."""

    def __init__(self, log: PlayLog) -> None:
        self._log = log
        self._at_ms = 0  # the trends are as of this time
        n = len(log.item_ids)
        self.counted = 0
        self._pairs = [csr_matrix((n, n), dtype=np.float64) for _ in STEPS]
        self._trending = np.zeros((n, len(HALF_LIVES_DAYS)))

    def advance(self, count: int) -> None:
        """Count the plays up to the first `count`."""
        while self.counted < count:
            stop = min(count, self.counted + AT_ONCE)
            self._age(int(self._log.time_ms[stop - 1]))
            self._count(self.counted, stop)
            self.counted = stop

    def _age(self, at_ms: int) -> None:
        """Bring the trends to a later time."""
        days = (at_ms - self._at_ms) / DAY_MS
        self._trending *= np.exp2(-np.minimum(days / np.array(HALF_LIVES_DAYS), 1000))
        self._at_ms = at_ms

    def _count(self, start: int, stop: int) -> None:
        log, n = self._log, len(self._log.item_ids)
        liked = np.arange(start, stop)[log.strength[start:stop] > 0]
        days = (log.time_ms[liked] - self._at_ms) / DAY_MS
        for column, half_life in enumerate(HALF_LIVES_DAYS):
            weights = np.exp2(days / half_life)
            self._trending[:, column] += np.bincount(log.item[liked], weights=weights, minlength=n)
        found: list[list[tuple[I64, I64, F64]]] = [[] for _ in STEPS]
        play = earlier = liked
        for distance in range(max(map(len, WEIGHTS))):
            earlier = log.previous[earlier]
            there = earlier >= 0
            play, earlier = play[there], earlier[there]
            pair = (log.strength[earlier] > 0) & (log.item[earlier] != log.item[play])
            before, after = log.item[earlier[pair]].astype(np.int64), log.item[play[pair]].astype(np.int64)
            for of_step, counting in zip(found, WEIGHTS, strict=True):
                if distance < len(counting) and counting[distance]:
                    of_step.append((before, after, np.full(len(before), counting[distance])))
        for step, of_step in enumerate(found):
            before, after, weight = (np.concatenate(column) for column in zip(*of_step, strict=True))
            self._pairs[step] = self._pairs[step] + csr_matrix((weight, (before, after)), shape=(n, n))

    def tables(
        self,
        at_ms: int,
        weights: F64,
        rows: I64 | None = None,
        n_rows: int | None = None,
        sequence: SequenceNet | None = None,
    ) -> Tables:
        """The tables at a time not before the last play. `rows`: (n_items,) row of each item in the generation, which has `n_rows`;
        None: of the first `n_rows` items each its own number. `sequence`: of the log's items, or of the first of them."""
        days = (at_ms - self._at_ms) / DAY_MS
        faded = np.exp2(-np.minimum(max(0.0, days) / np.array(HALF_LIVES_DAYS), 1000))
        n = len(self._log.item_ids)
        rows = np.arange(n) if rows is None else rows
        n_rows = n if n_rows is None else n_rows
        there = np.flatnonzero(rows < n_rows)
        trending: F32 = np.zeros((n_rows, len(HALF_LIVES_DAYS)), np.float32)
        trending[rows[there]] = self._trending[there] * faded
        placed = None if sequence is None else sequence.of_rows(rows, n_rows)
        return Tables(trending, self._cowatch(rows, n_rows), weights, at_ms, placed)

    def _cowatch(self, rows: I64, n_rows: int) -> Cowatch:
        pairs = self._pairs[0]
        followed = np.asarray(pairs.sum(axis=1)).ravel()
        kept, sizes = _most_frequent(pairs), np.zeros(n_rows, np.int64)
        items_of: list[Sequence[int] | I64] = [()] * n_rows
        for item, entries in enumerate(kept):
            if len(entries):
                items_of[rows[item]], sizes[rows[item]] = entries, len(entries)
        entries = np.concatenate([np.asarray(one, np.int64) for one in items_of]) if n_rows else np.zeros(0, np.int64)
        before = np.repeat(np.arange(len(followed)), np.diff(pairs.indptr))[entries]
        after = pairs.indices[entries]
        lifts = [_lift(of_step, before, after, s) for of_step, s in zip(self._pairs, SMOOTHING, strict=True)]
        return Cowatch(
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            rows[after].astype(np.int32),
            (pairs.data[entries] / (followed[before] + SMOOTHING[0])).astype(np.float32),
            np.stack(lifts, axis=1).astype(np.float32),
        )


def _lift(pairs: csr_matrix, before: I64, after: I64, smoothing: float) -> F64:
    """(entries,) of so many pairs."""
    following = np.asarray(pairs.sum(axis=0)).ravel()
    p = (following + 1) / (following.sum() + len(following))
    result: F64 = np.log1p(_counts(pairs, before, after) / (smoothing * p[after]))
    return result


def _counts(pairs: csr_matrix, before: I64, after: I64) -> F64:
    """(entries,) what is counted of each pair."""
    if not pairs.nnz:
        return np.zeros(len(before))
    pairs.sort_indices()
    n = pairs.shape[1]
    keys = np.repeat(np.arange(len(pairs.indptr) - 1), np.diff(pairs.indptr)) * n + pairs.indices
    wanted = before * n + after
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    result: F64 = np.where(keys[at] == wanted, pairs.data[at], 0.0)
    return result


def _most_frequent(pairs: csr_matrix) -> list[I64]:
    """Of each row the entries (positions in `data`) kept, most frequent first; of equals the lower item."""
    kept = []
    for start, stop in zip(pairs.indptr[:-1].tolist(), pairs.indptr[1:].tolist(), strict=True):
        size = stop - start
        if not size:
            kept.append(np.zeros(0, np.int64))
            continue
        order = np.argsort(-pairs.data[start:stop], kind="stable")[:FOLLOWERS]
        kept.append(start + order)
    return kept
