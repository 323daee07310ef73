"""A share of the viewers: who belongs to it, and that each is rewritten by their own generation."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.rebuild import Rebuild
from contracts.codec import Codec
from contracts.errors import StaleActivation
from contracts.shares import Share, in_share
from runtime.worker import Worker
from tests.worlds import T0, make_generation, play_event
from viewers.arms import Arms
from viewers.memory_store import MemoryStore
from viewers.packing import unpack
from viewers.rewrite import Outcome, RewriteJob, Rewriters, rewrite_viewers
from viewers.rewriter import Rewriter
from viewers.state import Limits, state_of
from viewers.store import ViewerWrite, WriteResult

CODEC, LIMITS = Codec.load(), Limits()
GENERATIONS = {name: make_generation(40, 4, seed=seed, generation_id=name) for seed, name in enumerate(("g1", "g2"), 1)}
VIEWERS = [f"v{n}" for n in range(40)]
HALF = Share("g2", 50)
_tokens = itertools.count(1)
WORKER = Worker("rewrite")


def draw_token() -> bytes:
    return next(_tokens).to_bytes(8, "big")


def rewriter(name: str, activation: int) -> Rewriter:
    return Rewriter(GENERATIONS[name], activation, CODEC.encode_row, LIMITS)


def arms(activation: int, share: Share = HALF) -> Arms:
    return Arms(rewriter("g1", activation), rewriter("g2", activation), share)


def jobs(item: int) -> list[RewriteJob]:
    return [RewriteJob(v, state_of(play_event(v, item + n % 7, item), timestamp_ms=T0)) for n, v in enumerate(VIEWERS)]


async def write(store: MemoryStore, item: int, by: Rewriters) -> list[Outcome]:
    done = await rewrite_viewers(store, jobs(item), by, now_ms=lambda: T0 + item, draw_token=draw_token, worker=WORKER)
    return [one.outcome for one in done]


def assert_of_their_arm(store: MemoryStore, activation: int, share: Share | None) -> None:
    """Everybody's row and vector are, to the bit, what their generation alone makes of their state."""
    assert len(store.server.viewers) == len(VIEWERS)
    for viewer, stored in store.server.viewers.items():
        row = CODEC.decode_row(stored.row)
        name = "g2" if share is not None and share.holds(viewer) else "g1"
        assert (row.generation_id, row.activation, stored.activation) == (name, activation, activation)
        again = rewriter(name, activation).rewrite(
            unpack(stored.state), computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
        )
        assert (again.row_bytes, again.vector_bytes) == (stored.row, stored.vector)


@given(st.text("abc019.", min_size=1, max_size=8), st.floats(0, 100), st.floats(0, 100))
def test_a_larger_share_holds_every_smaller_one(viewer: str, a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert in_share(viewer, "g1", small) <= in_share(viewer, "g1", large)
    assert in_share(viewer, "g1", 100) and not in_share(viewer, "g1", 0)


def test_a_share_is_about_as_large_as_it_says_and_another_generations_is_other_viewers() -> None:
    first, second = (
        {f"viewer-{i}" for i in range(20_000) if in_share(f"viewer-{i}", name, 5)} for name in ("g1", "g2")
    )
    assert 900 < len(first) < 1_100 and 900 < len(second) < 1_100  # 1000 ± 3.2 standard deviations, of a fixed hash
    assert 20 < len(first & second) < 85  # 50 by chance


def test_who_belongs_to_a_share_never_changes() -> None:
    assert [v for v in VIEWERS if Share("g2", 20).holds(v)] == ["v0", "v2", "v12", "v20", "v34"]


@pytest.mark.parametrize("percent", [0, 100, -1, float("nan"), float("inf"), True, "5"])
def test_a_share_of_nobody_or_of_everybody_is_none(percent: float) -> None:
    with pytest.raises(ValueError, match="more than 0 and less than 100"):
        Share("g2", percent)


def test_arms_are_of_one_activation() -> None:
    with pytest.raises(ValueError, match="one is needed"):
        Arms(rewriter("g1", 1), rewriter("g2", 2), HALF)


async def test_in_one_batch_every_viewer_is_rewritten_by_their_own_generation() -> None:
    store = MemoryStore()
    await store.connect()
    assert {HALF.holds(viewer) for viewer in VIEWERS} == {True, False}
    await write(store, 1, arms(1))
    await write(store, 9, arms(1))
    assert_of_their_arm(store, 1, HALF)
    assert await write(store, 9, arms(1)) == [Outcome.NOOP] * len(VIEWERS)


async def test_a_rebuild_brings_everybody_to_their_arm_when_a_share_begins_changes_and_ends() -> None:
    store = MemoryStore()
    await store.connect()
    await write(store, 1, rewriter("g1", 1))
    larger = Share("g2", 80)
    for activation, by, share in (
        (2, arms(2), HALF),
        (3, arms(3, larger), larger),
        (4, arms(4), HALF),
        (5, rewriter("g1", 5), None),
    ):
        done = await Rebuild(store, by, now_ms=lambda: T0 + 50, draw_token=draw_token).run()
        assert (done.rewritten, done.swept) == (len(VIEWERS), 0)
        assert_of_their_arm(store, activation, share)
        default = CODEC.decode_row(store.server.default_rows["*:*"])
        assert (default.generation_id, default.activation) == ("g1", activation), (
            "nobody's own row is of what is in force"
        )


class Overtaken(MemoryStore):
    """Somebody else writes first, once, after rows and states were read."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        first, self.meanwhile = self.meanwhile, None
        if first is not None:
            await first()
        return await super().write_viewers(writes)


async def test_a_row_that_is_kept_is_the_one_that_whoever_has_the_candidate_wrote_last() -> None:
    """Never an older one than theirs, and never one of the other arm; nobody's plays are lost between the two."""
    store = Overtaken()
    await store.connect()
    other = MemoryStore(store.server)
    await other.connect()
    await write(other, 1, arms(1))
    without = Arms(rewriter("g1", 1), Rewriter(None, 1, CODEC.encode_row, LIMITS, keeps_rows=True), HALF)
    store.meanwhile = lambda: write(other, 20, arms(1))
    await write(store, 9, without)
    assert [len(unpack(stored.state).plays) for stored in store.server.viewers.values()] == [3] * len(VIEWERS)
    for viewer, stored in store.server.viewers.items():
        row = CODEC.decode_row(stored.row)
        expected = ("g2", T0 + 20) if HALF.holds(viewer) else ("g1", T0 + 9)
        assert (row.generation_id, row.computed_at_ms, stored.activation) == (*expected, 1)
    await write(other, 30, arms(1))
    assert_of_their_arm(store, 1, HALF)


async def test_whoever_cannot_load_the_candidate_is_refused_where_a_newer_activation_was_met() -> None:
    store = MemoryStore()
    await store.connect()
    await write(store, 1, arms(2))
    without = Arms(rewriter("g1", 1), Rewriter(None, 1, CODEC.encode_row, LIMITS, keeps_rows=True), HALF)
    before = dict(store.server.viewers)
    with pytest.raises(StaleActivation):
        await write(store, 9, without)
    assert store.server.viewers == before
