"""Publishing: from item factors and the lake to a generation folder that serving can load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import structlog

from batch.companions import make_companions
from batch.evaluate import make_generation
from batch.interactions import Interactions, states_from_lake
from batch.lake import Lake
from batch.plans import CopyPlan
from batch.play_log import read_play_log
from batch.ranking import NO_RANKING, Ranking
from batch.repeats import Repeats, make_rules
from batch.train import TRAINER, fold_in_parameters, versions
from contracts.catalogue import CatalogueItem
from contracts.errors import GenerationError
from contracts.manifest import CONFIDENCE_RULE, Confidence, Decision, Manifest
from embeddings.files import verify_generation
from embeddings.generation import F32
from embeddings.generations_folder import GenerationsFolder
from embeddings.groups import make_groups
from embeddings.publishing import Contents, write_generation
from embeddings.tables import RULE
from ranking.rows import fold
from runtime.settings import Settings
from viewers.rewriter import ranking_input
from viewers.state import Limits

log = structlog.get_logger()

TRAINING = "training"
"""Entry of the manifest's metrics that tells about the training data, beside the arms of the evaluation."""

_INPUT_SETTINGS = (
    "factors", "regularization", "alpha", "iterations", "seed", "decay_floor", "decay_half_life", "decay_gain", "ranker_plays",
)  # fmt: skip


def inputs_digest(plan: CopyPlan, settings: Settings, ledger_lines: int) -> str:
    """Names everything that a generation depends on: equal digests, equal generations. 16 hex digits.

    The offsets of plays and catalogue, the erasures, the settings of training and rules, the bounds of a state, the trainer's versions.
    """
    train = settings.train.model_dump()
    content = {
        "stream": plan.stream,
        "offsets": [[r.kind, r.topic, r.partition, r.to_offset] for r in plan.ranges if r.kind != "impressions"],
        "erasures": ledger_lines,
        "train": {name: train[name] for name in _INPUT_SETTINGS},
        "rules": settings.rules.model_dump(),
        "state": settings.state.model_dump(),
        "trainer": [TRAINER, versions(), RULE],
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def find_published(folder: GenerationsFolder, inputs: str) -> Manifest | None:
    """The newest generation made from the same inputs, if there is one that loads."""
    for manifest in reversed(folder.list()):
        if manifest.inputs == inputs:
            try:
                return verify_generation(folder.root, manifest.generation_id)
            except GenerationError as error:
                log.error("generation_unusable", error=str(error), remedy="it is made again")
    return None


def assemble(
    interactions: Interactions, Y: F32, catalogue: Sequence[CatalogueItem]
) -> tuple[list[CatalogueItem], F32, F32]:
    """Items, their factors (n, k) and popularity (n,): what was played, then the rest of the catalogue with zero vectors.

    A zero vector is never retrieved by taste, but the title has its availability and can be shown by other sources. A title that
    was played but is not in the catalogue (any more) keeps its vector, as a play of it still tells about taste, and is never
    shown; where there is no catalogue at all, everything is shown under its id.
    """
    known = {item.item_id: item for item in catalogue}
    played = [
        known.get(item_id) or CatalogueItem(item_id, item_id, taken_down=bool(catalogue))
        for item_id in interactions.items
    ]
    with_vector = set(interactions.items)
    rest = [item for item in catalogue if item.item_id not in with_vector]
    factors = np.zeros((len(played) + len(rest), Y.shape[1]), dtype=np.float32)
    factors[: len(played)] = Y
    popularity = np.zeros(len(factors), dtype=np.float32)
    popularity[: len(played)] = interactions.popularity
    return [*played, *rest], factors, popularity


def publish(
    root: str | Path,
    lake: Lake,
    settings: Settings,
    plan: CopyPlan,
    interactions: Interactions,
    Y: F32,
    *,
    inputs: str,
    metrics: Mapping[str, Mapping[str, float]],
    decision: Decision,
    created_at_ms: int,
    ranking: Ranking = NO_RANKING,
    advance: Callable[[int], None] = lambda viewers: None,
) -> Manifest:
    """Fold every viewer in, and write the generation. It serves nobody until it is activated. Errors: `GenerationError`.

    The manifest says how many lines of the ledger the data obeys: who is in a later line may still be in it. `created_at_ms`: when
    they were read. `ranking`: what was trained for it beside the factors.
    """
    items, factors, popularity = assemble(interactions, Y, lake.catalogue())
    parameters = fold_in_parameters(settings.train)
    when = datetime.fromtimestamp(created_at_ms / 1000, UTC)
    generation_id = f"{when:%Y%m%dT%H%M%S}.{created_at_ms % 1000:03d}Z-{inputs[:8]}"
    share, gap = Repeats(read_play_log(lake) if ranking.log is None else ranking.log).measure()
    rules = make_rules(settings.rules, share, gap)
    groups = make_groups([i.creators for i in items], [i.topics for i in items])
    ids = [i.item_id for i in items]
    generation = make_generation(generation_id, ids, factors, popularity, parameters, None, rules, groups)
    users, vectors = [], []
    for viewer, state in states_from_lake(lake, Limits(**settings.state.model_dump()), advance=advance):
        if not state.is_empty:
            users.append(viewer)
            vectors.append(fold(generation, ranking_input(state)).x)
    manifest = Manifest(
        generation_id=generation_id,
        created_at_ms=created_at_ms,
        k=factors.shape[1],
        n_items=len(items),
        n_users=len(users),
        confidence=Confidence(CONFIDENCE_RULE, **asdict(parameters)),
        stream=plan.stream,
        cutoffs=plan.cutoffs,
        inputs=inputs,
        trainer=TRAINER,
        versions=versions(),
        metrics={
            **metrics,
            TRAINING: {
                "viewers": float(len(interactions.viewers)),
                "interactions": float(interactions.Cui.nnz),
                "plays": float(interactions.plays),
                "newest_event_ms": float(interactions.newest_event_ms),
                "repeats": share,
                "repeat_gap": float(gap),
                **ranking.metrics,
            },
        },
        decision=decision,
        files={},
        ledger_lines=lake.ledger.lines,
        rules=rules,
    )
    tables = ranking.tables(ids)
    companions = make_companions(generation.with_tables(tables), np.array([not item.taken_down for item in items]))
    user_factors = np.stack(vectors) if vectors else np.zeros((0, factors.shape[1]), dtype=np.float32)
    contents = Contents(items, factors, popularity, users, user_factors, tables, companions)
    return write_generation(root, manifest, contents)
