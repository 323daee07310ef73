"""What came of a share: of the rows that viewers were shown, how many led to a play, by arm, with intervals. From the lake alone.

A row counts once for each viewer it was shown to, however often (a row's id is that of its content, so every rewrite is another row). A hit
is a play that names the row it came from and says something good of its title (`viewers.signals`). Default rows are nobody's arm.
Only what was shown between the candidate's first and last impression is compared, so that both arms are of the same days.

95 % intervals by bootstrap over viewers: a viewer's rows resemble one another. Who saw both arms, as the share was changed, is drawn with
all of their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch.backtest.intervals import HIGH, LOW, resample
from batch.interactions import COLUMNS, PLAY_KIND_NAMES, share_and_flags
from batch.lake import Lake, open_lake
from contracts.errors import UserError
from embeddings.generations_folder import GenerationsFolder
from runtime.settings import Settings
from viewers.signals import play_strengths

CANDIDATE, OTHERS = "candidate", "others"
HIT_RATE, PLAYS, HELPED = MEASURES = ("hit_rate", "plays_per_viewer", "viewers_with_a_play")
SEED = 7
_ROW = ["viewer", "row_id"]
_PLAY = [*_ROW, "play_started_at_ms", "play_id", "item_id"]
_FLAG_BITS = (1, 2, 4)

Interval = tuple[float, float, float]
"""(value, low, high)."""
Columns = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """`generations`: what its rows were made by. `rows`: shown to their `viewers`; `hits`: of them led to a play; `plays`: that came from
    them. `measures`: hit rate (hits a row), plays a viewer, share of the viewers with a play."""

    generations: tuple[str, ...]
    viewers: int
    rows: int
    hits: int
    plays: int
    measures: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both arms between two times (ms). `difference`: candidate minus others."""

    candidate: str
    from_ms: int
    to_ms: int
    arms: Mapping[str, ArmOutcome]
    difference: Mapping[str, Interval]


def find_outcome(settings: Settings, candidate: str | None) -> Outcome:
    """Of a candidate, None: of the one that some see now. Errors: `UserError` if nothing can be said, `DataError`, `GenerationError`."""
    if candidate is None:
        current = GenerationsFolder(settings.generations_path).read_current()
        if current is None or current.share is None:
            raise UserError("nobody sees a candidate now: name the one to look back on (nearline generations list)")
        candidate = current.share.generation_id
    return compare_arms(open_lake(settings), candidate)


def compare_arms(lake: Lake, candidate: str) -> Outcome:
    """Errors: `UserError`, `DataError`."""
    shown = _shown(lake)
    own = shown.filter(pc.equal(shown.column("generation_id"), candidate))
    if not own.num_rows:
        raise UserError(
            f"the lake has no row of {candidate} that a viewer was shown: impressions come with the nightly copy "
            "(nearline nightly, or --publish-only)"
        )
    from_ms, to_ms = pc.min(own.column("first_ms")).as_py(), pc.max(own.column("last_ms")).as_py()
    at_ms = shown.column("first_ms")
    shown = shown.filter(pc.and_(pc.greater_equal(at_ms, from_ms), pc.less_equal(at_ms, to_ms)))
    if pc.all(pc.equal(shown.column("generation_id"), candidate)).as_py():
        raise UserError(
            f"nobody was shown a row of anything but {candidate} meanwhile: there is nothing to compare with"
        )
    # Once it is in force for everybody its rows are compared with nobody's: the days after would be its alone.
    others = shown.filter(pc.not_equal(shown.column("generation_id"), candidate))
    to_ms = min(to_ms, pc.max(others.column("last_ms")).as_py())
    shown = shown.filter(pc.less_equal(shown.column("first_ms"), to_ms))
    joined = shown.join(_plays(lake), keys=_ROW, join_type="left outer")
    plays: Columns = pc.fill_null(joined.column("plays"), 0).to_numpy().astype(np.float64)
    generation = np.array(joined.column("generation_id").to_pylist())
    names, viewer = np.unique(np.array(joined.column("viewer").to_pylist()), return_inverse=True)
    masks = {CANDIDATE: generation == candidate, OTHERS: generation != candidate}
    parts = {arm: _sums(viewer[mask], len(names), plays[mask]) for arm, mask in masks.items()}
    sums, counts = (np.concatenate([parts[arm][i] for arm in masks], axis=1) for i in (0, 1))
    drawn = resample(sums, counts, SEED)
    total = np.divide(
        sums.sum(axis=0), counts.sum(axis=0), out=np.full(sums.shape[1], np.nan), where=counts.any(axis=0)
    )
    n = len(MEASURES)
    arms = {
        arm: ArmOutcome(
            tuple(sorted(set(generation[mask].tolist()))),
            int((parts[arm][1][:, 1] > 0).sum()),
            int(mask.sum()),
            int((plays[mask] > 0).sum()),
            int(plays[mask].sum()),
            _intervals(total[i * n : (i + 1) * n], drawn[:, i * n : (i + 1) * n]),
        )
        for i, (arm, mask) in enumerate(masks.items())
    }
    difference = _intervals(total[:n] - total[n:], drawn[:, :n] - drawn[:, n:])
    return Outcome(candidate, from_ms, to_ms, arms, difference)


def _shown(lake: Lake) -> Any:
    """`viewer`, `row_id`, `generation_id`, `first_ms`, `last_ms`: every row of somebody's own that they were shown."""
    keys = [*_ROW, "generation_id"]
    schema = pa.schema([*((name, pa.string()) for name in keys), ("first_ms", pa.int64()), ("last_ms", pa.int64())])
    tables = [schema.empty_table()]
    for batch in lake.batches("impressions", [*keys, "served_at_ms", "default_row"]):
        own = pa.Table.from_batches([batch.filter(pc.invert(batch.column("default_row")))])
        found = own.group_by(keys).aggregate([("served_at_ms", "min"), ("served_at_ms", "max")])
        tables.append(found.rename_columns(schema.names).cast(schema))
    whole = pa.concat_tables(tables).group_by(keys).aggregate([("first_ms", "min"), ("last_ms", "max")])
    return whole.rename_columns(schema.names)


def _plays(lake: Lake) -> Any:
    """`viewer`, `row_id`, `plays`: plays that came from a row and say something good of their title."""
    bits = [f"flag{bit}" for bit in _FLAG_BITS]
    of_play = [(name, pa.int64() if name == "play_started_at_ms" else pa.string()) for name in _PLAY]
    schema = pa.schema([*of_play, *((name, pa.uint8()) for name in ("share", *bits))])
    tables = [schema.empty_table()]
    for batch in lake.batches("events", [*COLUMNS, "row_id"]):
        is_play = pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES)
        batch = batch.filter(pc.and_(is_play, pc.is_valid(batch.column("row_id"))))
        if batch.num_rows:
            share, flags = share_and_flags(batch)
            said = {"share": share} | {name: flags & bit for name, bit in zip(bits, _FLAG_BITS, strict=True)}
            tables.append(pa.table({name: batch.column(name) for name in _PLAY} | said, schema=schema))
    found = pa.concat_tables(tables).group_by(_PLAY).aggregate([(name, "max") for name in ("share", *bits)])
    flags = np.zeros(found.num_rows, np.uint8)
    for name in bits:
        flags |= found.column(f"{name}_max").to_numpy()
    liked = play_strengths(found.column("share_max").to_numpy(), flags) > 0
    counted = found.filter(pa.array(liked)).group_by(_ROW).aggregate([([], "count_all")])
    return counted.select([*_ROW, "count_all"]).rename_columns([*_ROW, "plays"])


def _sums(viewer: Any, n_viewers: int, plays: Columns) -> tuple[Columns, Columns]:
    """(n_viewers, measures) sums and counts. `viewer`: (rows,) places from 0. `plays`: (rows,)."""
    rows = np.bincount(viewer, minlength=n_viewers).astype(np.float64)
    hits = np.bincount(viewer, weights=plays > 0, minlength=n_viewers)
    of_viewer = np.bincount(viewer, weights=plays, minlength=n_viewers)
    there = (rows > 0).astype(np.float64)
    return (
        np.stack([hits, of_viewer, (of_viewer > 0).astype(np.float64)], axis=1),
        np.stack([rows, there, there], axis=1),
    )


def _intervals(values: Columns, drawn: Columns) -> dict[str, Interval]:
    """Measure → value with its interval. Draws without a viewer of some arm say nothing."""
    low, high = np.nanquantile(drawn, (LOW, HIGH), axis=0)
    return {name: (float(values[i]), float(low[i]), float(high[i])) for i, name in enumerate(MEASURES)}
