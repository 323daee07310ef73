"""The whole rewrite of a batch of viewers in one call without the interpreter's lock: packed states in, packed states and rows out.

    for a tile of viewers:
        each: read the stored state → merge the facts → cut → write → signals → fold in          (kernel_state, _signals, _foldin)
        all:  one product per block of items, candidates by taste                                 (kernel_topk)
        each: the other sources → score → best entries → reasons → row                            (kernel_rows, kernel_row)

The twin that says the same in a few lines of Python is `Rewriter.rewrite_by_reference`; tests hold one against the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings import kernel_foldin as foldin
from embeddings import kernel_sequence as sequence
from embeddings import kernel_topk as topk
from embeddings.compiled import entry, jit
from ranking import kernel_rows as ranking
from ranking import kernel_rules as placing
from ranking.features import TASTE
from ranking.rows import HALF_EVIDENCE
from viewers import kernel_bytes as kb
from viewers import kernel_row as rows
from viewers import kernel_signals as signals
from viewers import kernel_state as state
from viewers.kernel_state import OK, REFERENCE

Array = NDArray[Any]

UNCHANGED, REWRITTEN = 0, 1
"""What became of a viewer; `REFERENCE` (2): it was not done here, ask the twin."""

TILE = 32
"""Viewers that share a product. Fewer make it slower, more do not fit into a core's second cache with their scores."""


class Model(NamedTuple):
    """A generation as the kernel reads it."""

    Y: Array  # (n_items and what preferences are about, k) float32
    YP: Array  # the same, float32: Y (YtY + λI)⁻¹
    P: Array  # (k, k) float64: (YtY + λI)⁻¹
    leverage: float  # the greatest yᵀP y
    A0: Array  # (k, k) float64: YtY + λI
    decay: signals.Decay
    popularity: ranking.Popularity
    ranker: ranking.Ranker
    rules: placing.RuleSet
    sorted_digests: Array  # (n_items,) int64
    digest_order: Array  # (n_items,) int64
    allowed: Array  # (n_items,) bool: may be shown at the time of the batch
    strengths: Array  # (8, 256) float32: flags, share → strength of a play


class Tile(NamedTuple):
    """What is known of each viewer of a tile between the phases. T viewers, at most S signals and E excluded rows each."""

    rows: Array  # (T, S) int32: folded items
    c: Array  # (T, S) float64: their confidences
    n: Array  # (T,) int64; −1: no row is made of this viewer
    weights: Array  # (T,) float64: weight of the evidence
    signals: Array  # (T,) int64
    away_ms: Array  # (T,) int64: since the newest play that says something began, or the event that the row is made for
    excluded: Array  # (T, E) int32
    n_excluded: Array  # (T,) int64
    looked: Array  # (T, PLACES) int32: newest liked items, the next two alike
    ages_ms: Array  # (T, PLACES) int64: how much older than the newest
    look_places: Array  # (T, PLACES) int64: which of `rows`
    n_looked: Array  # (T,) int64; 0: nothing is known, or no sequence model
    look: sequence.Look
    again: Array  # (T, AGAIN_KEPT) int32: what may come back
    n_again: Array  # (T,) int64
    activated: Array  # (S,) float64, the next two: scratch
    activated_rows: Array  # (S,) int32
    strongest: Array  # (AGAIN_KEPT,) float64
    X: Array  # (T, k) float32
    L: Array  # (T, padded k, padded k) float64: factors
    fold: foldin.Scratch
    places: Array  # (LANES,) int64
    C: Array  # (LANES, S) float64: contributions
    x: Array  # (k,) float64


class Ranks(NamedTuple):
    """The entries as numbers, for who measures rows. 0 viewers: not wanted."""

    counts: Array  # (viewers,) int64; 0: no row
    rows: Array  # (viewers, ENTRIES_KEPT) int32
    scores: Array  # (viewers, ENTRIES_KEPT) float64


def make_ranks(viewers: int) -> Ranks:
    return Ranks(
        np.zeros(viewers, np.int64), np.zeros((viewers, ENTRIES_KEPT), np.int32), np.zeros((viewers, ENTRIES_KEPT))
    )


@entry
def rewrite_batch(
    data: Array, part_ends: Array, first_part: Array, force: Array, event_ms: Array, limits: Array,
    catalogue: state.Catalogue, model: Model, shelf: topk.Shelf, frame: rows.Frame,
    s: state.Columns, g: signals.Signals, t: Tile, search: topk.Search, e: ranking.Entries, p: placing.Placing, scratch: rows.Scratch,
    out_states: Array, state_ends: Array, out_rows: Array, row_ends: Array, status: Array, ranks: Ranks, now_ms: int,
) -> None:  # fmt: skip
    """Rewrite all viewers.

    `data`: uint8, packed states one after another: of viewer v those number first_part[v] … first_part[v + 1] − 1, the stored one
    first, then facts; part i ends at part_ends[i]. `force`: make a row even if nothing changed. `event_ms`: −1 for none.
    `out_rows` takes vector (float16) and row of each viewer; `state_ends`, `row_ends`: where each viewer's bytes end. `ranks`: empty
    where rows are wanted as bytes alone. `now_ms`: the time that rows are made for.
    """
    state_at = row_at = np.int64(0)
    for start in range(0, len(status), len(t.n)):
        b = min(len(t.n), len(status) - start)
        for i in range(b):
            v = start + i
            status[v], end = _merge(
                data, part_ends, first_part[v], first_part[v + 1], force[v], limits, catalogue, s, out_states, state_at
            )
            t.n[i], t.n_excluded[i] = -1, 0
            if status[v] == REWRITTEN:
                state_at = end
                _fold(data, s, catalogue, model, now_ms, event_ms[v], g, t, i)
            state_ends[v] = state_at
        topk.search(shelf, t.X, b, np.int64(ranking.CANDIDATES), t.excluded, t.n_excluded, search)
        for i in range(b):
            v = start + i
            if t.n[i] >= 0:
                begin = state_ends[v - 1] if v > 0 else np.int64(0)
                row_id = kb.digest(frame.origin, out_states, begin, state_ends[v], np.int64(8), s.words)
                count = _rank(model, shelf, search, row_id, e, p, t, i)
                for m in range(len(t.x)):
                    row_at = kb.write_u16(out_rows, row_at, kb.half(t.x[m]))
                row_at = rows.write_row(out_rows, row_at, frame, row_id, event_ms[v], catalogue, count, e, scratch)
                if v < len(ranks.counts):
                    ranks.counts[v] = count
                    for place in range(count):
                        ranks.rows[v, place], ranks.scores[v, place] = e.rows[place], e.scores[place]
            row_ends[v] = row_at


@jit
def _merge(
    data: Array, part_ends: Array, first: int, stop: int, force: bool, limits: Array, catalogue: state.Catalogue,
    s: state.Columns, out: Array, at: int,
) -> Any:  # fmt: skip
    """First phase, of one viewer: (status, where the written state ends). The state taken apart stays in `s`."""
    state.clear(s)
    begin = part_ends[first - 1] if first > 0 else np.int64(0)
    if state.read_state(data, begin, part_ends[first], s, catalogue, limits, np.int64(1)) != OK:
        return REFERENCE, at
    base, base_items = s.n[state.PLAYS], s.n[state.ITEMS]
    for part in range(first + 1, stop):
        if state.read_state(data, part_ends[part - 1], part_ends[part], s, catalogue, limits, np.int64(0)) != OK:
            return REFERENCE, at
    if s.n[state.PLAYS] > base:
        state.merge_plays(s, base, base_items)
    if state.cut_plays(s, limits) != OK or at + state.worst_size(s) > len(out):
        return REFERENCE, at
    state.sort_items(s)
    end = state.write_state(out, at, data, s)
    if not force and kb.same(out, at, end - at, data, begin, part_ends[first] - begin):
        return UNCHANGED, at
    return REWRITTEN, end


@jit
def _fold(
    data: Array,
    s: state.Columns,
    catalogue: state.Catalogue,
    model: Model,
    now_ms: int,
    event_ms: int,
    g: signals.Signals,
    t: Tile,
    i: int,
) -> None:
    """Then: signals, and the vector into the tile. No row is made without a generation or of a viewer of whom nothing is known."""
    for m in range(t.X.shape[1]):
        t.X[i, m] = 0
    if len(model.Y) == 0 or s.n[state.PLAYS] + s.n[state.REGISTERS] + s.n[state.SEEN] == 0:
        return
    count = signals.collect(data, s, catalogue, model.strengths, g)
    n, evidence = signals.confidences(s, g, count, model.decay, t.rows[i], t.c[i])
    t.n_looked[i] = 0
    if len(model.ranker.sequence.bias):
        t.n_looked[i] = signals.look_back(s, g, count, t.looked[i], t.ages_ms[i], t.look_places[i])
    if s.n[state.REGISTERS] > 0 and model.rules.shares[placing.PREFERENCE] > 0:
        preference = model.rules.shares[placing.PREFERENCE]
        n, evidence = signals.add_told(data, s, catalogue, model.decay, preference, n, evidence, t.rows[i], t.c[i])
    t.n_again[i] = 0
    if model.rules.shares[placing.REPEATS] > 0:
        gap, of_age = model.rules.whole[placing.GAP], model.rules.activation
        found = signals.activated(s, g, count, gap, model.allowed, of_age, t.activated, t.activated_rows)
        t.n_again[i] = placing.may_come_back(t.activated, t.activated_rows, found, t.again[i], t.strongest)
    t.n_excluded[i] = signals.exclude(data, s, catalogue, model.sorted_digests, model.digest_order, t.excluded[i])
    t.n[i], t.weights[i], t.signals[i] = n, 0.0, count
    t.away_ms[i] = 0
    for play in range(s.n[state.PLAYS]):  # newest first
        if model.strengths[s.flags[play], s.share[play]] != 0:
            t.away_ms[i] = max(np.int64(0), now_ms - max(event_ms, s.started[play]))
            break
    if n > 0:
        t.weights[i] = evidence * evidence / (evidence * evidence + HALF_EVIDENCE * HALF_EVIDENCE)
        foldin.fold(model.Y, model.YP, model.P, model.leverage, model.A0, t.rows[i], t.c[i], n, t.L[i], t.fold, t.X[i])


@jit
def _rank(
    model: Model, shelf: topk.Shelf, search: topk.Search, row_id: Any, e: ranking.Entries, p: placing.Placing, t: Tile, i: int
) -> int:  # fmt: skip
    """Second phase: the entries of one viewer, and their reasons. How many. `row_id`: uint64, what exploration is drawn by."""
    n, weight, taste, plays = t.n[i], t.weights[i], np.int64(0), np.int64(0)
    for m in range(len(t.x)):
        t.x[m] = t.X[i, m]
    if weight > 0:
        taste = topk.best(
            model.Y,
            shelf,
            t.x,
            i,
            np.int64(ranking.CANDIDATES),
            t.excluded[i],
            t.n_excluded[i],
            search,
            e.candidates,
            e.als,
        )
    rows, c, ranker = t.rows[i], t.c[i], model.ranker
    count = ranking.gather(taste, t.excluded[i], t.n_excluded[i], model.popularity, e)
    if len(ranker.weights):
        ranking.weigh(weight, t.signals[i], t.away_ms[i], ranker, e)
        count, plays = ranking.gather_further(rows, c, n, ranker, count, e)
    topk.score_rows(model.Y, t.x, e.candidates, taste, count, e.als)
    looked = t.n_looked[i]
    if looked:
        sequence.look_back(ranker.sequence, t.looked[i], t.ages_ms[i], looked, t.look)
        sequence.score_next(ranker.sequence, t.look.u, e.candidates, count, e.sequence)
    if len(ranker.weights):
        ranking.rank_by_features(count, model.popularity, ranker, looked > 0, e)
        ranking.forget(rows, plays, ranker, e)
        weight = e.weights[TASTE]
    else:
        ranking.blend(count, weight, model.popularity, e)
    moves = placing.moves(model.rules)
    if moves:
        placing.explore(model.Y, t.x, model.rules, row_id, e, p)
    ranking.scatter(count, t.excluded[i], t.n_excluded[i], model.allowed, e)
    if moves:
        placing.bring_back(t.again[i], t.n_again[i], p)
        kept = ranking.sort_best(count, np.int64(placing.POOL), e)
        kept = placing.arrange(kept, len(ranker.weights) > 0, weight, model.Y, t.x, model.rules, e, p)
    else:
        kept = ranking.take_best(count, len(ranker.weights) > 0, e)
    with_reasons = min(kept, ENTRIES_WITH_REASONS)
    for place in range(ENTRIES_WITH_REASONS):
        e.reason_counts[place] = 0
    if n > 0 and with_reasons > 0:
        by_taste = np.int64(0)
        for place in range(with_reasons):  # for the others `follow` says why
            t.places[by_taste] = place
            by_taste += e.sources[place] != ranking.COWATCH and e.sources[place] != ranking.SEQUENCE
        if by_taste:
            foldin.contributions(
                model.Y, model.YP, model.leverage, rows, c, n, t.L[i], e.rows, t.places, by_taste, t.fold, t.C
            )
        if plays:
            ranking.follow(rows, n, with_reasons, plays, ranker, e, t.C)
        if looked:
            ranking.go_on(t.look_places[i], looked, n, with_reasons, ranker, e, t.look, t.C)
        ranking.take_reasons(t.C, rows, n, weight, with_reasons, e)
    return kept
