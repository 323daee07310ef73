"""MovieLens-1M at full speed through the real topic and a real updater process, then every viewer compared.

What is expected comes from the source file by a path of its own: group by viewer, sort, cut; the vector by solving the k × k
system in plain numpy; the row's scores over the whole catalogue. Many of this set's plays share one instant, a viewer's whole
sitting being entered within seconds, so the order among equals is tested too.

Normally the first 20,000 events; with NEARLINE_FULL=1 all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares

from contracts.codec import Codec
from contracts.digests import id_digest, item_digest
from contracts.rows import ENTRIES_KEPT
from embeddings.generation import NEVER_MS, FoldInParameters, Generation
from embeddings.generations_folder import GenerationsFolder
from ranking.rows import CANDIDATES
from runtime.settings import Settings
from sandbox.importers import read_events, to_events
from sandbox.processes import Service, environment_of
from sandbox.replay import replay
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.topics import ensure_topics
from tests.worlds import wait_until, write_generation_folder
from viewers.packing import pack, unpack
from viewers.redis_store import RedisStore, open_store
from viewers.rewriter import Rewriter
from viewers.state import COMPLETED, Limits, Play, ViewerState

FOLDER = Path(__file__).resolve().parents[3] / "shared/data/ml-1m-pos"
FULL = os.environ.get("NEARLINE_FULL") == "1"
SLICE_PLAYS = 10_000
"""Each is sent as a start and a completion."""

K = 32
PARTITIONS = 4
LIMITS = Limits()
CODEC = Codec.load()
PARAMETERS = FoldInParameters()

pytestmark = [
    pytest.mark.skipif(not FOLDER.exists(), reason=f"no data set: {FOLDER.name} is not beside the repository"),
    pytest.mark.timeout(1_500 if FULL else 120),
]


# The simple path from the source file


@dataclass(frozen=True)
class Source:
    """The file's rows in its own order, as columns; row i is the play named `ml-1m-pos:i+1`."""

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray

    def plays_of(self) -> dict[str, list[Play]]:
        """Every play of each viewer, newest first."""
        plays: dict[str, list[Play]] = {}
        columns = zip(self.user.tolist(), self.item.tolist(), self.time_ms.tolist(), strict=True)
        for number, (user, item, time_ms) in enumerate(columns, 1):
            play = Play(time_ms, id_digest(f"{FOLDER.name}:{number}"), str(item), 255, COMPLETED)
            plays.setdefault(str(user), []).append(play)
        return {user: sorted(found, reverse=True) for user, found in plays.items()}


SCORE_ROUNDING = 2.0**-11 + 1e-5
"""Rows keep scores in two bytes (float16)."""


def read_source(plays: int | None) -> Source:
    table = pq.read_table(FOLDER / "events.parquet", columns=["user_id", "item_id", "timestamp"]).slice(0, plays)
    columns = [table.column(name).to_numpy() for name in table.schema.names]
    assert (np.diff(columns[2]) >= 0).all()
    return Source(*columns)


def expected_state(plays: list[Play]) -> ViewerState:
    """Newest 200 kept, the rest remembered as seen. (Nobody rates a film twice in this set, so the cut per item is idle.)"""
    assert len({play.item_id for play in plays}) == len(plays)
    kept, cut = plays[: LIMITS.max_plays], plays[LIMITS.max_plays :]
    return ViewerState(tuple(kept), tuple(sorted((item_digest(p.item_id), p.started_at_ms // 1000) for p in cut)))


def expected_vector(generation: Generation, state: ViewerState) -> np.ndarray:
    """x = (YtY + λI + Σ (c − 1) y yᵀ)⁻¹ Σ c y with c = 1 + α g (b₀ + (1 − b₀) 2^(−rank / h)); the newest has rank 0."""
    Y = generation.item_factors.astype(np.float64)[[generation.index[play.item_id] for play in state.plays]]
    p = PARAMETERS
    ranks = np.arange(len(Y))
    c = 1 + p.alpha * p.decay_gain * (p.decay_floor + (1 - p.decay_floor) * 2.0 ** (-ranks / p.decay_half_life))
    A = generation.YtY + p.regularization * np.eye(K) + (Y.T * (c - 1)) @ Y
    return np.linalg.solve(A, Y.T @ c)


def expected_scores(generation: Generation, plays: list[Play], x: np.ndarray) -> np.ndarray:
    """(n_items,): what each title would score in this viewer's row; −inf for what was played, and for what is neither
    among the best by taste nor among the best by popularity."""
    evidence = min(len(plays), LIMITS.max_plays)
    w = evidence**2 / (evidence**2 + 2.0**2)
    played = [generation.index[play.item_id] for play in plays]
    als = generation.item_factors.astype(np.float64) @ x
    popularity = generation.popularity_score.astype(np.float64)
    scores = w * als + (1 - w) * popularity
    als[played] = popularity[played] = -np.inf
    candidates = np.concatenate(
        [np.argsort(-als, kind="stable")[:CANDIDATES], np.argsort(-popularity, kind="stable")[:CANDIDATES]]
    )
    chosen = np.full(len(scores), -np.inf)
    chosen[candidates] = scores[candidates]
    return chosen


def train(source: Source) -> Generation:
    """A small ALS over these plays; every title of the catalogue has a row, played or not."""
    ids = [str(item) for item in pq.read_table(FOLDER / "items.parquet").column("item_id").to_pylist()]
    row_of = {item: row for row, item in enumerate(ids)}
    users, user_rows = np.unique(source.user, return_inverse=True)
    item_rows = np.array([row_of[str(item)] for item in source.item.tolist()])
    Cui = scipy.sparse.csr_matrix(
        (np.full(len(item_rows), 1 + PARAMETERS.alpha, dtype=np.float32), (user_rows, item_rows)),
        shape=(len(users), len(ids)),
    )
    model = AlternatingLeastSquares(factors=K, iterations=3, num_threads=1, random_state=3)
    model.fit(Cui, show_progress=False)
    return Generation(
        generation_id="ml",
        item_ids=tuple(ids),
        item_factors=np.ascontiguousarray(model.item_factors, dtype=np.float32),
        parameters=PARAMETERS,
        popularity=np.bincount(item_rows, minlength=len(ids)).astype(np.float32),
        available_from_ms=np.zeros(len(ids), dtype=np.int64),
        available_until_ms=np.full(len(ids), NEVER_MS, dtype=np.int64),
        maturity=np.zeros(len(ids), dtype=np.uint8),
        item_digests=np.array([item_digest(item) for item in ids], dtype=np.int64),
    )


# The real way


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Closes what the test opened, whatever happens."""
    async with AsyncExitStack() as stack:
        yield stack


async def finished(store: RedisStore) -> int:
    """Offsets with a fate."""
    markers = [await store.read_marker(p) for p in range(PARTITIONS)]
    assert all(m is None or m.unaccounted == 0 for m in markers)
    return sum(m.next_offset for m in markers if m is not None)


async def drain(store: RedisStore, events: int) -> float:
    """Wait until all events are finished; events a second, from the first that was seen to be."""
    first: tuple[float, int] | None = None
    while (done := await finished(store)) < events or first is None:
        if done and first is None:
            first = time.perf_counter(), done
        await asyncio.sleep(0.01)
    return (events - first[1]) / (time.perf_counter() - first[0])


async def test_every_viewer_of_a_real_data_set_has_the_state_vector_and_row_that_the_source_file_gives(
    kafka: KafkaServer,
    valkey: ValkeyServer,
    namespace: str,
    tmp_path: Path,
    closing: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NEARLINE_FULL", raising=False)  # no setting: a process would refuse it
    topic = f"t-{uuid.uuid4().hex[:12]}"
    settings = Settings(
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": topic, "group_id": topic},
        store={"url": valkey.url, "namespace": namespace},
        generations_path=str(tmp_path / "generations"),
        log_level="warning",
    )
    await ensure_topics(settings, PARTITIONS)
    source = read_source(None if FULL else SLICE_PLAYS)
    generation = train(source)
    write_generation_folder(settings.generations_path, generation)
    activation = GenerationsFolder(settings.generations_path).activate("ml", floor=0).activation
    store = open_store(settings.store, settings.keys)
    closing.push_async_callback(store.close)
    await store.connect()
    service = Service("updater", environment_of(settings), tmp_path, port_setting="NEARLINE_HEALTH__PORT")
    closing.callback(lambda: service._child.stop(kill=True))
    service.start()
    await service.wait_ready()
    await wait_until(store.read_updaters, "the updater has its generation")

    events = 2 * len(source.time_ms)
    draining = asyncio.create_task(drain(store, events))
    sent = await replay(settings, itertools.islice(to_events(read_events(FOLDER)), events))
    rate = await draining
    service.stop()
    assert sent.events == events

    plays_of = source.plays_of()
    rewriter = Rewriter(generation, activation, CODEC.encode_row, LIMITS)
    far = 0.0
    for viewer, plays in plays_of.items():
        stored = await store.read_viewer(viewer)
        state = expected_state(plays)
        assert stored.state == pack(state), viewer
        assert unpack(stored.state) == state
        row = CODEC.decode_row(stored.row)
        assert (row.generation_id, row.activation, row.event_time_ms) == ("ml", activation, plays[0].started_at_ms)
        again = rewriter.rewrite(state, computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms)
        assert (again.vector_bytes, again.row_bytes) == (stored.vector, stored.row), viewer

        x = expected_vector(generation, state)
        vector = np.frombuffer(stored.vector, dtype="<f2").astype(np.float64)
        far = max(far, float(np.linalg.norm(vector - x) / np.linalg.norm(x)))
        scores = expected_scores(generation, plays, x)
        best = np.sort(scores)[::-1][: len(row.entries)]
        assert len(row.entries) == ENTRIES_KEPT
        np.testing.assert_allclose([entry.score for entry in row.entries], best, rtol=SCORE_ROUNDING, atol=1e-5)
        chosen = [scores[generation.index[entry.item_id]] for entry in row.entries]
        np.testing.assert_allclose(chosen, best, rtol=SCORE_ROUNDING, atol=1e-5)
    assert far < 1e-3  # half-precision numbers have a step of 5e-4
    found = {viewer async for batch in store.scan_viewers() for viewer in batch}
    assert found == set(plays_of)
    together = sum(len(plays) > 1 and plays[0].started_at_ms == plays[1].started_at_ms for plays in plays_of.values())
    print(
        f"\n{events:,} events of {len(plays_of):,} viewers: {rate:,.0f} events/s from the first fetch to drained "
        f"(sent at {sent.events_per_s:,.0f}/s beside it); every state and row equal bit for bit, vectors within {far:.1e}; "
        f"{together:,} viewers whose two newest plays share one instant"
    )
