"""The files of a generation's tables: `trending.npy`, `cowatch.parquet`, `ranker.json`, all three or none; and beside them, where a
sequence model was trained, `sequence_items.npy` and `sequence.npy`. Bytes in, bytes out.

They are listed in the manifest with size and checksum as all others. A generation without them is one of an older program, or made
from too few plays, and is served without them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.errors import GenerationError
from embeddings.groups import Encoded, Groups, encode_groups
from embeddings.roots import FOREIGN, read_table
from embeddings.sequence import SequenceNet
from embeddings.tables import F32, FEATURES, RULE, STEPS, Cowatch, Tables, check_tables

TRENDING, COWATCH, RANKER = "trending.npy", "cowatch.parquet", "ranker.json"
TABLE_FILES = (TRENDING, COWATCH, RANKER)
SEQUENCE_ITEMS, SEQUENCE = "sequence_items.npy", "sequence.npy"
SEQUENCE_FILES = (SEQUENCE_ITEMS, SEQUENCE)

LIFTS = tuple("lift" if step == STEPS[0] else f"lift_{step}" for step in STEPS)
_SCHEMA = pa.schema(
    [
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("share", pa.list_(pa.float32()), nullable=False),
        *(pa.field(name, pa.list_(pa.float32()), nullable=False) for name in LIFTS),
    ]
)
_SCHEMA_1 = pa.schema([_SCHEMA.field(name) for name in ("items", "share", "lift")])
RULE_1, RULE_2 = "softmax-1", "softmax-2"


def table_bytes(tables: Tables) -> dict[str, bytes]:
    """What is written."""
    cowatch = io.BytesIO()
    c = tables.cowatch
    starts = pa.array(c.starts.astype(np.int32), pa.int32())
    columns = [pa.ListArray.from_arrays(starts, pa.array(values)) for values in (c.items, c.share, *c.lift.T)]
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), cowatch, compression="zstd")
    weights = dict(zip(FEATURES, tables.weights.tolist(), strict=True))
    ranker = {"rule": RULE, "trends_at_ms": tables.at_ms, "weights": weights}
    s = tables.sequence
    return {
        TRENDING: npy_bytes(tables.trending),
        COWATCH: cowatch.getvalue(),
        RANKER: (json.dumps(ranker, indent=2) + "\n").encode(),
        **({} if s is None else {SEQUENCE_ITEMS: npy_bytes(s.items), SEQUENCE: npy_bytes(s.network)}),
    }


def npy_bytes(matrix: F32) -> bytes:
    """As `.npy`, format 1.0."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(matrix, dtype="<f4"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def parse_tables(
    trending: Any, cowatch: bytes, ranker: bytes, n_items: int, where: str, sequence: SequenceNet | None = None
) -> Tables:
    """`trending`: (n_items, half-lives) float32, parsed as the factors are; so is what `sequence` is made of. Errors: `GenerationError`."""
    weights, at_ms = _parse_ranker(ranker, where)
    tables = Tables(trending, _parse_cowatch(cowatch, n_items, where), weights, at_ms, sequence)
    check_tables(tables, n_items, where)
    return tables


def _parse_cowatch(data: bytes, n_items: int, where: str) -> Cowatch:
    try:
        table = read_table(data, n_items)
        if not any(table.schema.equals(known) for known in (_SCHEMA, _SCHEMA_1)):
            raise ValueError(f"other columns than {', '.join(_SCHEMA.names)}")
        columns = [table.column(name).combine_chunks() for name in table.schema.names]
        if any(column.null_count or column.values.null_count for column in columns):
            raise ValueError("a value is missing")
        starts = columns[0].offsets.to_numpy()
        if not all(np.array_equal(starts, column.offsets.to_numpy()) for column in columns):
            raise ValueError("lists of one row differ in length")
        items, share, *lifts = (np.array(column.values.to_numpy()) for column in columns)
        nothing = [np.zeros(len(items), np.float32)] * (len(STEPS) - len(lifts))  # an older program counted one
        lift = np.stack([*lifts, *nothing], axis=1)
    except FOREIGN as error:
        raise GenerationError(f"{where}/{COWATCH}: {error}; publish the generation again") from error
    return Cowatch(starts.astype(np.int64), items, share, lift)


def _parse_ranker(data: bytes, where: str) -> tuple[Any, int]:
    """The weights, and the time of the trends (0 where an older program has not written it)."""
    try:
        content = json.loads(data)
        if not isinstance(content, Mapping) or content.keys() - {"trends_at_ms"} != {"rule", "weights"}:
            raise ValueError("rule and weights are wanted")
        if content["rule"] not in (RULE, RULE_1, RULE_2):
            raise ValueError(f"rule {str(content['rule'])[:40]!r}: this program ranks by {RULE}")
        weights = content["weights"]
        if content["rule"] == RULE_1:
            weights = _of_rule_1(weights)
        elif content["rule"] == RULE_2:
            weights = _of_rule_2(weights)
        if not isinstance(weights, Mapping) or weights.keys() != set(FEATURES):
            raise ValueError(f"weights of other features than those of {RULE}")
        return np.array([float(weights[name]) for name in FEATURES]), int(content.get("trends_at_ms", 0))
    except (*FOREIGN, AttributeError, RecursionError) as error:
        raise GenerationError(f"{where}/{RANKER}: {error}; publish the generation again") from error


def _of_rule_1(weights: Any) -> dict[str, float]:
    """The weights of softmax-1 by today's names: w times a feature is the feature less 1 − w times it. Errors: KeyError, ValueError."""
    slots = ("last", "2nd", "3rd", "4th_6th", "7th_15th")
    same = ("popularity", "trend_12h", "trend_1d", "trend_3d", "trend_7d", "trend_30d", "follows_any")
    names = {name: name for name in same}
    names |= {f"follows_{slot}": f"follows_{slot}_{STEPS[0]}" for slot in slots}
    names |= {f"{name}_without_evidence": f"{name}_if_new" for name in ("popularity", "trend_1d", "trend_7d")}
    if set(weights) != {*names, "taste", "taste_by_evidence"}:
        raise ValueError(f"weights of other features than those of {RULE_1}")
    found = dict.fromkeys(FEATURES, 0.0) | {new: float(weights[old]) for old, new in names.items()}
    by_evidence = float(weights["taste_by_evidence"])
    return found | {"taste": float(weights["taste"]) + by_evidence, "taste_if_new": -by_evidence}


def _of_rule_2(weights: Any) -> dict[str, float]:
    """The weights of softmax-2, which knew nothing of sequences. Errors: TypeError, ValueError."""
    new = {name for name in FEATURES if name.startswith("sequence")}
    if set(weights) != set(FEATURES) - new:
        raise ValueError(f"weights of other features than those of {RULE_2}")
    return dict.fromkeys(FEATURES, 0.0) | dict(weights)


def parse_groups(items: Any) -> Groups:
    """Creators and topics of `items.parquet`."""
    return encode_groups(items.num_rows, *(_encoded(items.column(name)) for name in ("creators", "topics")))


def _encoded(column: Any) -> Encoded:
    """A column of lists of names, by arrays; what is null is no name."""
    lists = column.combine_chunks()
    item = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    names = lists.flatten()
    item, names = item[names.is_valid().to_numpy(zero_copy_only=False)], names.drop_null().dictionary_encode()
    return names.dictionary.to_pylist(), item.astype(np.int64), names.indices.to_numpy().astype(np.int64)
