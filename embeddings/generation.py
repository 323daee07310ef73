"""`Generation`: one night's embeddings, immutable, with everything the fold-in and the retrieval derive from them once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.errors import GenerationError
from contracts.rules import NO_RULES, Rules
from embeddings.groups import Groups, typical_vectors
from embeddings.tables import Tables, check_tables

NEVER_MS = np.iinfo(np.int64).max
"""An availability that does not end."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FoldInParameters:
    """The confidence rule (`embeddings/foldin.py` has the formula), kept in the manifest.

    `regularization` λ, `alpha` α, `decay_floor` b₀, `decay_half_life` h (in distinct items), `decay_gain` g.
    """

    regularization: float = 1.0
    alpha: float = 10.0
    decay_floor: float = 0.0
    decay_half_life: float = 2.0
    decay_gain: float = 2.0


@dataclass(frozen=True, eq=False)
class Generation:
    """Item embeddings of one night. Row i of every array is `item_ids[i]`.

    `item_factors` Y: (n_items, k) float32, C order. `popularity`: (n_items,) float32, weighted plays, ≥ 0.
    `available_from_ms`, `available_until_ms`: (n_items,) int64. `maturity`: (n_items,) uint8, years.
    `item_digests`: (n_items,) int64, `viewers.state.item_digest` of the ids (what `seen` keeps). `tables`: what ranking knows beside
    the embeddings; None: nothing. `rules`: what its rows obey. `groups`: creators and topics of the titles; None: not known, or no
    rule asks for them.
    """

    generation_id: str
    item_ids: tuple[str, ...]
    item_factors: F32
    parameters: FoldInParameters
    popularity: F32
    available_from_ms: I64
    available_until_ms: I64
    maturity: NDArray[np.uint8]
    item_digests: I64
    tables: Tables | None = None
    rules: Rules = NO_RULES
    groups: Groups | None = None

    index: dict[str, int] = field(init=False, repr=False)
    YtY: F64 = field(init=False, repr=False)  # (k, k)
    P: F64 = field(init=False, repr=False)  # (YtY + λI)⁻¹, (k, k)
    popular_order: I64 = field(init=False, repr=False)  # rows by falling popularity
    popularity_score: F32 = field(init=False, repr=False)  # (n_items,) in 0…1, log-scaled
    windows: tuple[list[int | None], list[int | None]] = field(init=False, repr=False)  # from, until; None: unbounded
    digest_order: I64 = field(init=False, repr=False)  # rows by digest
    sorted_digests: I64 = field(init=False, repr=False)
    # What a viewer may be folded in from: the items, and behind them, where preferences count, the groups as if each were an item.
    fold_factors: F32 = field(init=False, repr=False)  # (n_items + groups that preferences may be about, k)
    fold_ids: tuple[str, ...] = field(init=False, repr=False)
    told_index: dict[str, int] = field(init=False, repr=False)  # subject of a preference → row of `fold_factors`
    explorable: I64 = field(init=False, repr=False)  # rows of the less played half of what was played

    def __post_init__(self) -> None:
        _check(self)
        Y = self.item_factors.astype(np.float64)
        set_ = object.__setattr__
        set_(self, "index", {item_id: row for row, item_id in enumerate(self.item_ids)})
        if len(self.index) != len(self.item_ids):
            raise GenerationError(f"generation {self.generation_id}: item ids are not unique")
        YtY = Y.T @ Y
        set_(self, "YtY", YtY)
        set_(self, "P", np.linalg.inv(YtY + self.parameters.regularization * np.eye(Y.shape[1])))
        set_(self, "popular_order", np.argsort(-self.popularity, kind="stable"))
        scale = np.log1p(self.popularity.astype(np.float64))
        top = float(scale.max()) if len(scale) else 0.0
        set_(self, "popularity_score", (scale / top if top > 0 else scale).astype(np.float32))
        starts = [value if value > 0 else None for value in self.available_from_ms.tolist()]
        ends = [value if value < NEVER_MS else None for value in self.available_until_ms.tolist()]
        set_(self, "windows", (starts, ends))
        order = np.argsort(self.item_digests, kind="stable")
        set_(self, "digest_order", order)
        set_(self, "sorted_digests", self.item_digests[order])
        self._prepare_rules()

    def _prepare_rules(self) -> None:
        set_, Y, ids = object.__setattr__, self.item_factors, self.item_ids
        told: dict[str, int] = {}
        if self.groups is not None and self.rules.preference > 0:
            chosen, vectors = typical_vectors(self.groups, Y, self.popularity)
            names = tuple(self.groups.names[group] for group in chosen.tolist())
            Y, ids = np.concatenate([Y, vectors]), ids + names
            told = {names[i]: self.n_items + i for i in np.flatnonzero(vectors.any(axis=1)).tolist()}
        set_(self, "fold_factors", Y)
        set_(self, "fold_ids", ids)
        set_(self, "told_index", told)
        played = np.flatnonzero((self.popularity > 0) & self.item_factors.any(axis=1))
        half = np.median(self.popularity[played]) if len(played) else 0.0
        set_(self, "explorable", played[self.popularity[played] <= half] if self.rules.exploration else played[:0])

    def with_tables(self, tables: Tables | None) -> Generation:
        """The same with other tables; everything else is shared. Errors: `GenerationError` for tables that do not fit."""
        if tables is not None:
            check_tables(tables, self.n_items, f"generation {self.generation_id}")
        changed = copy.copy(self)
        object.__setattr__(changed, "tables", tables)
        return changed

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def k(self) -> int:
        return int(self.item_factors.shape[1])

    def rows_of_digests(self, digests: I64) -> I64:
        """Rows of the items with these digests; digests that no item has are left out."""
        at = np.searchsorted(self.sorted_digests, digests)
        at = np.minimum(at, len(self.sorted_digests) - 1)
        rows: I64 = self.digest_order[at[self.sorted_digests[at] == digests]]
        return rows


def _check(generation: Generation) -> None:
    """Shapes, dtypes and finiteness; a bad generation never becomes an object."""
    name, n = generation.generation_id, len(generation.item_ids)
    Y = generation.item_factors
    if n == 0:
        raise GenerationError(f"generation {name}: no items")
    if Y.ndim != 2 or Y.shape[0] != n or Y.dtype != np.float32 or not Y.flags.c_contiguous:
        raise GenerationError(
            f"generation {name}: item_factors is {Y.dtype} {Y.shape}, wanted float32 ({n}, k) in C order"
        )
    if not np.isfinite(Y).all():
        raise GenerationError(f"generation {name}: item_factors holds NaN or infinity")
    if not np.isfinite(generation.popularity).all() or (generation.popularity < 0).any():
        raise GenerationError(f"generation {name}: popularity holds NaN, infinity or a negative number")
    for column in ("popularity", "available_from_ms", "available_until_ms", "maturity", "item_digests"):
        if getattr(generation, column).shape != (n,):
            raise GenerationError(
                f"generation {name}: {column} has shape {getattr(generation, column).shape}, wanted ({n},)"
            )
    if generation.tables is not None:
        check_tables(generation.tables, n, f"generation {name}")
    if generation.groups is not None and generation.groups.starts.shape != (n + 1,):
        raise GenerationError(f"generation {name}: creators and topics are not those of its items")
