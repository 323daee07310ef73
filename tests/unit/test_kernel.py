"""The compiled kernel against its readable twins: the same states to the byte, the same rows, alone and in any company."""

from __future__ import annotations

import dataclasses
import random
import struct
import weakref

import numpy as np
import pytest

from contracts.codec import Codec
from contracts.digests import id_digest, item_digest
from contracts.packed_ids import pack_ids, unpack_ids
from contracts.rules import Rules
from embeddings import kernel_foldin, kernel_topk
from embeddings.foldin import fold_in
from ranking import features
from tests.worlds import T0, make_generation, make_tables
from viewers import kernel_bytes, kernel_state
from viewers.kernel import REFERENCE, REWRITTEN, Todo
from viewers.kernel_batch import rewrite_batch
from viewers.packing import BadState, pack, unpack
from viewers.rewriter import Rewriter
from viewers.state import Limits, Play, Register, RegisterKind, ViewerState, merge

CODEC = Codec.load()
LIMITS = Limits(max_plays=30, max_plays_per_item=3, max_registers=10, max_seen=40)
BITS = 2**-10
"""Of a score as float16."""


def windowed(n_items: int = 500, k: int = 16, *, tables: bool = False):
    """A generation some of whose titles may not be shown at T0."""
    generation = make_generation(n_items, k, seed=2)
    if tables:
        generation = dataclasses.replace(generation, tables=make_tables(n_items))
    starts, ends = generation.available_from_ms.copy(), generation.available_until_ms.copy()
    starts[::11], starts[::13], ends[::7] = T0 - 5_000_000, T0 + 5_000_000, T0 + 7_000_000
    ends[::17] = T0
    return dataclasses.replace(generation, available_from_ms=starts, available_until_ms=ends)


def made_up_state(rng: random.Random, plays: int, registers: int = 0, seen: int = 0, erased_s: int = -1) -> ViewerState:
    def item() -> str:
        return rng.choice([f"tt{rng.randrange(500):07d}", f"tt{rng.randrange(5):07d}", f"unknown-{rng.randrange(5)}"])

    return merge(
        [
            ViewerState(
                tuple(
                    Play(T0 - rng.randrange(10**10), rng.getrandbits(32), item(), rng.randrange(256), rng.randrange(8))
                    for _ in range(plays)
                ),
                tuple((item_digest(item()), (T0 - rng.randrange(10**10)) // 1000) for _ in range(seen)),
                tuple(
                    Register(
                        rng.choice(list(RegisterKind)), item(), T0 - rng.randrange(10**9), rng.getrandbits(32),
                        rng.choice([None, -100, 0, 50, 100]),
                    )
                    for _ in range(registers)
                ),
                erased_s,
            )
        ],
        LIMITS,
    )  # fmt: skip


def made_up_todo(rng: random.Random) -> Todo:
    """Any state, and facts: mostly a play, sometimes one that is known already, or something else."""
    state = made_up_state(
        rng, rng.choice([0, 1, 3, 10, 25, 40]), rng.choice([0, 0, 3, 12]), rng.choice([0, 0, 5, 45]),
        rng.choice([-1, -1, (T0 - 5 * 10**9) // 1000]),
    )  # fmt: skip
    facts = [made_up_state(rng, 1) if rng.random() < 0.9 else made_up_state(rng, 2, 1) for _ in range(rng.randrange(3))]
    if state.plays and rng.random() < 0.3:
        facts.append(ViewerState(plays=(state.plays[0]._replace(share=rng.choice([0, 255])),)))
    event_time_ms = rng.choice([None, T0, T0 - 3_600_000, T0 - 10**8])
    return Todo(pack(state), tuple(map(pack, facts)), rng.random() < 0.5, event_time_ms)


@pytest.mark.parametrize("tables", [False, True])
def test_states_and_rows_are_those_of_the_twins(tables: bool) -> None:
    rng, rewriter = random.Random(1), Rewriter(windowed(tables=tables), 3, CODEC.encode_row, LIMITS)
    for trial in range(300):
        todo = made_up_todo(rng)
        (found,) = rewriter.rewrite_many([todo], computed_at_ms=T0)
        before = unpack(todo.stored)
        after = merge([before, *map(unpack, todo.facts)], LIMITS)
        assert (found is None) == (after == before and not todo.force), trial
        if found is None:
            continue
        expected = rewriter.rewrite_by_reference(todo, computed_at_ms=T0)
        assert (found.state_bytes, found.row_id) == (pack(after), expected.row_id)
        assert bool(found.row_bytes) == bool(found.vector_bytes) == bool(expected.row_bytes)
        if found.row_bytes:
            assert_near(found.row_bytes, expected.row_bytes)
            ours, theirs = (np.frombuffer(one.vector_bytes, "<f2").astype(float) for one in (found, expected))
            assert np.abs(ours - theirs).max() <= BITS * max(1, np.abs(theirs).max())


def assert_near(data: bytes, expected: bytes) -> None:
    """One spelling, and the other row but for the last bit of its numbers (which may swap neighbours)."""
    row, other = CODEC.decode_row(data), CODEC.decode_row(expected)
    assert CODEC.encode_row(row) == data
    assert dataclasses.replace(row, entries=()) == dataclasses.replace(other, entries=())
    assert [e.score for e in row.entries] == pytest.approx([e.score for e in other.entries], rel=2 * BITS, abs=1e-6)
    theirs = {entry.item_id: entry for entry in other.entries}
    for entry in row.entries:
        twin = theirs[entry.item_id]
        assert (entry.source, entry[4:]) == (twin.source, twin[4:])
        assert [r.item_id for r in entry.reasons] == [r.item_id for r in twin.reasons] or entry != row.entries[0]
    first, twin = row.entries[0], theirs[row.entries[0].item_id]
    assert [r.contribution for r in first.reasons] == pytest.approx(
        [r.contribution for r in twin.reasons], rel=2 * BITS, abs=1e-6
    )


@pytest.mark.parametrize(("n_items", "tables"), [(500, False), (9_000, False), (500, True), (9_000, True)])
def test_a_viewers_bytes_are_the_same_alone_and_in_any_company(n_items: int, tables: bool) -> None:
    rng, rewriter = random.Random(2), Rewriter(windowed(n_items, tables=tables), 3, CODEC.encode_row, LIMITS)
    batch = [made_up_todo(rng) for _ in range(83)]
    alone = [rewriter.rewrite_many([todo], computed_at_ms=T0)[0] for todo in batch]
    assert rewriter.rewrite_many(batch, computed_at_ms=T0) == alone
    assert rewriter.rewrite_many(batch[::-1], computed_at_ms=T0) == alone[::-1]


def test_no_batch_leaves_a_trace_in_the_next_not_even_when_what_may_be_shown_has_changed() -> None:
    rng, generation, others = random.Random(4), windowed(tables=True), make_tables(500, 9)
    kept = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    bounds = sorted({*generation.available_from_ms.tolist(), *generation.available_until_ms.tolist()})[1:-1]
    times = [T0, *(bound + shift for bound in bounds[:4] for shift in (-1, 1)), T0]
    for at_ms in times + times[::-1]:
        batch = [made_up_todo(rng)._replace(force=True) for _ in range(5)]
        fresh = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
        found = kept.rewrite_many(batch, computed_at_ms=at_ms)
        assert found == fresh.rewrite_many(batch, computed_at_ms=at_ms)
        retold = [one.with_trends(others, "others").rewrite_many(batch, computed_at_ms=at_ms) for one in (kept, fresh)]
        assert retold[0] == retold[1] != found


def test_damaged_bytes_are_a_bad_state_or_what_the_twin_reads() -> None:
    rng, rewriter = random.Random(3), Rewriter(windowed(), 3, CODEC.encode_row, LIMITS)
    read = 0
    for _ in range(3_000):
        data = bytearray(made_up_todo(rng).stored)
        if not data:
            continue
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))] + bytes(rng.randrange(3))
        try:
            expected = pack(merge([unpack(bytes(data))], LIMITS))
        except BadState:
            with pytest.raises(BadState):
                rewriter.rewrite_many([Todo(bytes(data), (), True, None)], computed_at_ms=T0)
            continue
        (found,) = rewriter.rewrite_many([Todo(bytes(data), (), True, None)], computed_at_ms=T0)
        assert found is not None and found.state_bytes == expected
        read += 1
    assert read > 100


def test_plays_are_merged_without_the_twin() -> None:
    """Else everything would be right, and slow."""
    rng, rewriter = random.Random(4), Rewriter(windowed(), 3, CODEC.encode_row, LIMITS)
    rewriter.prepare()
    states = [pack(made_up_state(rng, plays, 3, 3)) for plays in (0, 1, 30, 40)]
    todo = [Todo(state, (pack(made_up_state(rng, 1)),), False, T0) for state in states]
    assert [one.status for one in rewriter._kernel.rewrite(todo, rewriter._framing(T0))] == [REWRITTEN] * 4
    erasure = Todo(states[1], (pack(ViewerState(erased_through_s=5)),), False, T0)
    assert [one.status for one in rewriter._kernel.rewrite([erasure], rewriter._framing(T0))] == [REFERENCE]


def test_preparing_the_next_activation_of_a_generation_leaves_alone_what_serves() -> None:
    """Its kernel is the same one, and another thread's."""
    generation = windowed()
    serving = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    state = pack(made_up_state(random.Random(4), 30))
    serving.rewrite_many([Todo(state, (), True, T0)], computed_at_ms=T0)
    shown_now = serving._kernel._model.allowed
    assert shown_now.any()
    Rewriter(generation, 4, CODEC.encode_row, LIMITS).prepare()
    assert serving._kernel._model.allowed is shown_now


def test_what_was_prepared_of_a_generation_goes_with_it() -> None:
    generation = windowed(tables=True)
    serving = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    serving.prepare()
    again = Rewriter(generation, 4, CODEC.encode_row, LIMITS)
    again.prepare()
    assert again._kernel is serving._kernel
    gone = weakref.ref(generation)
    # By counting references alone: an updater's garbage collector does not look at its first one.
    del generation, serving, again
    assert gone() is None


def test_one_compilation_serves_every_generation_and_none() -> None:
    read_only = make_generation(50, 8)
    read_only.item_factors.flags.writeable = False
    ruled = dataclasses.replace(windowed(), rules=Rules(exploration=0, repeats=0, preference=1))  # as JSON may have it
    for generation in (None, windowed(), read_only, ruled):
        Rewriter(generation, 1, CODEC.encode_row, LIMITS).rewrite(ViewerState(), computed_at_ms=T0)
    assert len(rewrite_batch.signatures) == 1


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("k", [8, 64])
def test_vectors_and_contributions_are_those_of_the_twin(k: int, decayed: bool) -> None:
    generation, rng = make_generation(400, k, seed=3), np.random.default_rng(5)
    Y, wide = generation.item_factors, int(kernel_foldin.padded(k))
    YP = (Y.astype(float) @ generation.P).astype(np.float32)
    A0 = generation.YtY + generation.parameters.regularization * np.eye(k)
    leverage, left_out = kernel_foldin.leverage(Y, YP), 0
    for _ in range(100):
        n = int(rng.integers(1, 2 * k + 20))
        rows, c = rng.choice(400, n, replace=False).astype(np.int32), 1 + rng.exponential(8, size=n)
        c[rng.random(n) < 0.2] *= -1
        c[rng.random(n) < 0.1] = 1.0
        c[0] = 5.0
        if decayed:  # as by rank: the oldest are left out of the matrix
            c = np.sign(c) * (1 + (np.abs(c) - 1) * np.exp2(-np.arange(n) / 2))
            left_out += n - kernel_foldin.weighty(c, n, leverage)
        L, x = rng.normal(size=(wide, wide)), np.empty(k, np.float32)
        scratch = kernel_foldin.make_scratch(k)
        kernel_foldin.fold(Y, YP, generation.P, leverage, A0, rows, c, n, L, scratch, x)
        expected = fold_in(generation, rows.astype(np.int64), c)
        assert np.linalg.norm(x - expected.x) <= 2e-6 * np.linalg.norm(expected.x)
        items, out = rng.choice(400, kernel_foldin.LANES).astype(np.int32), np.empty((kernel_foldin.LANES, n))
        kernel_foldin.contributions(Y, YP, leverage, rows, c, n, L, items, np.arange(10), 10, scratch, out)
        twins = expected.contributions(Y[items[:10]])
        # Those of a matrix without the oldest are as good as what a row keeps of them.
        close = kernel_foldin.SLIGHT * np.abs(twins).sum(axis=1, keepdims=True) if decayed else 0.0
        assert (np.abs(out[:10] - twins) <= 1e-5 + close).all()
        scores = (Y[items[:10]] @ x)[:, None]
        assert (np.abs(out[:10].sum(axis=1, keepdims=True) - scores) <= 1e-5 + 1e-4 * np.abs(scores) + close).all()
    assert (left_out > 100) == decayed  # plays of a hundred viewers


def found_by_search(
    Y: np.ndarray, X: np.ndarray, excluded: np.ndarray, allowed: np.ndarray, wanted: int
) -> list[list[int]]:
    """Rows of the best of each vector, ascending."""
    shelf, search = kernel_topk.make_shelf(Y, allowed), kernel_topk.make_search(len(X), *Y.shape)
    counts = np.full(len(X), excluded.shape[1])
    kernel_topk.search(shelf, X, len(X), wanted, excluded, counts, search)
    rows, scores = np.empty(kernel_topk.KEPT, np.int32), np.empty(kernel_topk.KEPT)
    found = []
    for v, x in enumerate(X.astype(np.float64)):
        count = kernel_topk.best(Y, shelf, x, v, wanted, excluded[v], counts[v], search, rows, scores)
        found.append(sorted(rows[:count].tolist()))
    return found


@pytest.mark.parametrize("n_items", [40, 300, 5_000, 20_000])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_best_are_found_exactly_in_small_and_large_flat_and_skewed_catalogues(n_items: int, skew: float) -> None:
    rng = np.random.default_rng(7)
    Y = (rng.normal(size=(n_items, 16)) * rng.lognormal(0, skew, size=(n_items, 1))).astype(np.float32)
    X = np.concatenate([rng.normal(size=(6, 16)), Y[:2], np.zeros((1, 16))]).astype(np.float32)
    excluded = rng.integers(n_items, size=(len(X), 20)).astype(np.int32)
    allowed = rng.random(n_items) < 0.9
    for x, out, found in zip(X, excluded, found_by_search(Y, X, excluded, allowed, 76), strict=True):
        scores = Y.astype(np.float64) @ x.astype(np.float64)
        scores[out], scores[~allowed] = -np.inf, -np.inf
        best = np.argsort(-scores, kind="stable")[:76]
        assert found == sorted(best[scores[best] > -np.inf].tolist())


def test_of_equal_items_the_lower_rows_are_found() -> None:
    Y = np.repeat(np.float32([[1.0, 2.0], [3.0, 1.0]]), 2_000, axis=0)
    excluded = np.int32([[2_001, 2_003]])
    (found,) = found_by_search(Y, np.float32([[1.0, 0.0]]), excluded, np.ones(len(Y), np.bool_), 5)
    assert found == [2_000, 2_002, 2_004, 2_005, 2_006]


@pytest.mark.parametrize("least", [1, 77, 745])
def test_what_follows_most_is_cut_where_the_twin_cuts_it(least: int) -> None:
    """By the kernel's selection and the readable one, of values alike, of many equal ones, and of few."""
    draw = np.random.default_rng(least)
    alike, equal, few = (
        np.exp(draw.normal(size=745)),
        draw.integers(1, 4, 745) / 8.0,
        np.repeat([1.0, 2.0, 2.0, 3.0], 187),
    )
    for values in (alike, equal, few[:745]):
        floor = features._floor(values, least)
        assert floor == kernel_topk.reached(values, np.int64(len(values)), np.int64(least))
        assert (values >= floor).sum() >= least


def test_packed_ids_and_digests_are_those_of_the_twins() -> None:
    rng = random.Random(8)
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:|@~-"
    text, starts, lengths, out = (
        np.empty(30_000, np.uint8),
        *(np.empty(200, np.int64) for _ in range(2)),
        np.empty(30_000, np.uint8),
    )
    for _ in range(500):
        alphabet, longest = (
            rng.sample(characters, rng.choice([1, 11, 16, 17, 32, 33, 64, 65, 69])),
            rng.choice([1, 9, 128]),
        )
        uniform = rng.random() < 0.5
        ids = [
            "".join(rng.choices(alphabet, k=longest if uniform else rng.randint(1, longest)))
            for _ in range(rng.randrange(70))
        ]
        data = pack_ids(ids)
        _, end = kernel_bytes.read_ids(
            np.frombuffer(data + b"zz", np.uint8), 0, len(data) + 2, len(ids), text, starts, lengths, 0, 0
        )
        assert end == len(data)
        assert [bytes(text[a : a + n]).decode() for a, n in zip(starts[: len(ids)], lengths, strict=False)] == ids
        end = kernel_bytes.write_ids(
            out, 0, text, starts, lengths, np.arange(len(ids)), len(ids), np.empty(128, np.int64)
        )
        assert bytes(out[:end]) == data
        if data:
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= rng.randint(1, 255)
            try:
                expected = unpack_ids(bytes(damaged), 0, len(ids))[1]
            except (ValueError, IndexError):
                expected = -1
            array = np.frombuffer(bytes(damaged), np.uint8)
            assert kernel_bytes.read_ids(array, 0, len(array), len(ids), text, starts, lengths, 0, 0)[1] == expected
    words, nothing = np.empty(40, np.uint64), np.empty(0, np.uint8)
    for one in ("a", "tt0000001", "x" * 128):
        data = np.frombuffer(one.encode(), np.uint8)
        assert int(kernel_bytes.digest(nothing, data, 0, len(data), 6, words)) == item_digest(one)
        assert int(kernel_bytes.digest(data[:1], data, 1, len(data), 4, words)) == id_digest(one)


def test_halves_are_rounded_as_the_standard_library_does() -> None:
    rng = random.Random(9)
    for scale in (1, 1e-5, 1e-7, 1e4):
        for _ in range(300):
            number = rng.gauss(0, scale)
            if abs(number) < 65_504:
                assert kernel_bytes.half(number) & 0x7FFF == struct.unpack("<H", struct.pack("<e", number))[0] & 0x7FFF
    assert [kernel_bytes.half(number) for number in (0.0, 1e9, -1e9, 2047.9999)] == [0, 0x7BFF, 0xFBFF, 0x6800]


def test_an_id_that_no_generation_has_is_not_found() -> None:
    catalogue = kernel_state.make_catalogue(tuple(f"tt{i:07d}" for i in range(1_000)))
    for text, row in ((b"tt0000999", 999), (b"tt0001000", -1), (b"tt000099", -1)):
        assert kernel_state.find_row(catalogue, np.frombuffer(text, np.uint8), 0, len(text)) == row
