"""The nightly job: the steps in order. Each can be done again; a job that was interrupted goes on where it was.

0. mend      a store that fell back, or a rebuild that died: the generation in force is rebuilt first
1. copy      new records to the lake, by a plan; then what erasures cover is scrubbed     → the cut-off offsets
2. train     on the past, and evaluate on the held-out plays: the gate                      (not if inputs did not change)
3. publish   trained on everything, and the ranker on the newest plays: a generation folder, manifest last
4. activate  CURRENT moves, the activation is announced, live updaters take it up (or a deadline passes)
5. rebuild   everybody's row through the one rewrite, then a sweep; with `seed`, or where the store lacks what only the lake has
             (`batch/seeding.py`), the lake's plays are merged in: also by a night whose generation is held back
6. prune     old generations
7. report    what it did to the rows, for people (`batch/review`), by nights that published or held back something new

A crash after 1 is resumed with the same plan; after 2 it is evaluated again; after 3 the published generation is found by its
inputs; after 4 the activation stays; after 5 everybody has it already and is passed over.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import stamina
import structlog

from batch.activation import Activator, wall_ms
from batch.copy import copy_records
from batch.evaluate import Evaluation, choose_holdout, decide, evaluate, make_generation, read_cases
from batch.forget import scrub, scrub_dead_letters
from batch.interactions import Interactions, read_interactions, remove_leftovers, states_from_lake
from batch.lake import ScrubReport, open_lake
from batch.lock import lake_lock
from batch.night_note import NightNote
from batch.plans import CopyPlan, CopyReport, Plans
from batch.publish import TRAINING, find_published, inputs_digest, publish
from batch.ranking import train_ranking
from batch.report import NightlyReport as NightlyReport
from batch.review.files import review_night
from batch.review.make import Judged
from batch.seeding import ASKED, Seeding, read_note, why_seed, write_note
from batch.train import fold_in_parameters, train_item_factors
from contracts.current import Current
from contracts.errors import GenerationError, NearlineError, StoreChanged, TransientError, UserError
from contracts.manifest import Decision, Manifest
from embeddings.files import load_generation, load_manifest
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import kafka_errors, make_admin, make_consumer
from runtime.progress import ProgressReporter, make_progress
from runtime.schemas import open_codec
from runtime.settings import Settings
from runtime.tasks import stop_client
from viewers.state import Limits
from viewers.store import Store

log = structlog.get_logger()

ATTEMPTS = 6
WAIT_MAX_S = 20.0

T = TypeVar("T")


async def run_nightly(
    settings: Settings,
    store: Store,
    *,
    force: bool = False,
    skip_evaluation: bool = False,
    seed: bool = False,
    publish_only: bool = False,
    progress: ProgressReporter | None = None,
    updaters_deadline_s: float = 60.0,
    now_ms: Callable[[], float] = wall_ms,
) -> NightlyReport:
    """Do the steps. `store` is connected.

    `force`: publish even what the gate holds back. `skip_evaluation`: publish without asking it. `seed`: merge every play of the
    lake into the viewers' states, and let updaters without a marker start at the cut-offs. `publish_only`: leave out 4 and 5: what was
    published waits until a person (or the next night) puts it in force.
    Errors: `UserError` if another nightly job runs on this lake; `HaltError`, `GenerationError`; `TransientError` if a server
    stays away.
    """
    with lake_lock(settings.lake_path):
        remove_leftovers(settings.lake_path)
        job = _Nightly(settings, store, progress or make_progress(), now_ms, updaters_deadline_s)
        try:
            report = await job.run(force=force, skip_evaluation=skip_evaluation, seed=seed, publish_only=publish_only)
            return report if report.reused else await job.review()
        except (UserError, GenerationError):
            job.give_up()  # the same plan would fail again: the next try begins anew, with what came meanwhile
            raise


class _Nightly:
    """One night. The report grows with the steps."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        progress: ProgressReporter,
        now_ms: Callable[[], float],
        deadline_s: float,
    ) -> None:
        self._settings = settings
        self._store = store
        self._progress = progress
        self._now_ms = now_ms
        self._lake = open_lake(settings)
        self._note = NightNote(self._lake.path)
        self._folder = GenerationsFolder(settings.generations_path)
        self._limits = Limits(**settings.state.model_dump())
        self._activator = Activator(settings, store, progress, now_ms=now_ms, updaters_deadline_s=deadline_s)
        self._seconds: dict[str, float] = {}
        self._known_at_ms = 0  # when the erasures that this night applies were read
        self._report = NightlyReport("unchecked", "")
        self._judged = Judged()

    async def run(self, *, force: bool, skip_evaluation: bool, seed: bool, publish_only: bool) -> NightlyReport:
        await self._timed("mend", self._mend())  # 0
        plan = await self._timed("copy", self._copy())  # 1
        why = ASKED if seed else await self._why_seed(plan)
        self._told(seeded=why)
        inputs = inputs_digest(plan, self._settings, self._lake.ledger.lines)
        manifest = await asyncio.to_thread(find_published, self._folder, inputs)
        if manifest is None:
            decision, metrics = await self._timed("evaluate", self._evaluate(skip_evaluation))  # 2
            if decision.verdict == "held_back":
                if not force:
                    log.error(
                        "generation_held_back", reason=decision.reason, remedy="look at it, or nearline nightly --force"
                    )
                    self._told(decision=decision.verdict, reason=decision.reason)
                    return await self._stay_with_the_old(plan, why)
                decision = Decision("forced", decision.reason)
            manifest = await self._timed("publish", self._publish(plan, inputs, decision, metrics))  # 3
        else:
            self._told(reused=True, metrics={a: m for a, m in manifest.metrics.items() if a != TRAINING})
        self._tell_about(manifest)
        if publish_only or await asyncio.to_thread(self._is_candidate, manifest):
            await self._stay_with_the_old(plan, why)
            return await self._prune()
        current = await self._timed(
            "activate", self._retried(lambda: self._activator.activate(manifest.generation_id, again=False))
        )  # 4
        self._told(activation=current.activation)
        await self._timed("rebuild", self._rebuild(current, plan, bool(why)))  # 5
        report = await self._prune()  # 6
        self._note.complete(int(self._now_ms()))
        return report

    async def _prune(self) -> NightlyReport:
        pruned = await asyncio.to_thread(self._folder.prune, self._settings.train.keep_generations)
        return self._told(pruned=tuple(pruned))

    def _is_candidate(self, manifest: Manifest) -> bool:
        """A share of the viewers sees it: that is for a person to widen or to end."""
        current = self._folder.current_or_none()
        found = current is not None and manifest.generation_id in current.generations[1:]
        if found:
            log.info(
                "candidate_stays_one", generation_id=manifest.generation_id, remedy="nearline generations activate"
            )
        return found

    async def _stay_with_the_old(self, plan: CopyPlan, why_seed: str) -> NightlyReport:
        """End a night that puts nothing in force."""
        if why_seed:
            await self._timed("rebuild", self._seed_in_force(plan))
        self._note.complete(int(self._now_ms()))
        return self._told()

    # 0

    async def _mend(self) -> None:
        """Rebuild the generation in force if the store does not know that this has been done: it came back as an older copy, was
        emptied, or the rebuild died. Until then viewers keep older rows, and a night that is held back would leave it so."""
        current = await asyncio.to_thread(self._folder.current_or_none)
        if current is None or await self._retried(lambda: self._store.read_rebuilt(current.activation)):
            return
        log.warning(
            "rebuild_of_the_generation_in_force",
            generation_id=current.generation_id,
            activation=current.activation,
            reason="the store does not know of a finished rebuild: it fell back, or the rebuild was interrupted",
        )
        try:
            again = await self._retried(lambda: self._activator.activate(None, again=False))
            await self._retried(lambda: self._activator.rebuild(again, erased_through_s=self._lake.ledger.through_s))
        except (GenerationError, TransientError) as error:
            log.error(
                "generation_in_force_not_rebuilt", error=str(error), remedy="the night goes on: its own replaces it"
            )

    def give_up(self) -> None:
        """The next night begins with a plan of its own."""
        self._note.give_up(int(self._now_ms()))

    # 1

    async def _copy(self) -> CopyPlan:
        """Copy what is new, or resume an interrupted night with its plan; then scrub. Returns the plan that is covered.

        A plan that copied nothing is not worth resuming: there may be something by now."""
        plans = Plans(self._lake)
        begun = self._note.plan_to_resume(int(self._now_ms()))
        plan = plans.last()
        report = plans.report(plan) if plan is not None else None
        if begun is None or plan is None or report is None or begun != plan.number or not plan.records:
            with self._progress.step("copy to the lake") as step:
                report = await self._retried(lambda: self._copy_once(step.set))
            plan = plans.last()
            assert plan is not None
            self._note.begin(plan.number, int(self._now_ms()))
        scrubbed = await asyncio.to_thread(self._scrub)
        await scrub_dead_letters(self._settings, self._lake, now_ms=int(self._now_ms()))
        self._told(
            copied=report.written, private=report.private, invalid=report.invalid, erased=report.erased, lost=report.lost,
            cutoffs=plan.cutoffs, scrubbed=sum(scrubbed.rows.values()),
        )  # fmt: skip
        return plan

    def _scrub(self) -> ScrubReport:
        """Erasures made by hand meanwhile count too. What is trained from here on obeys the ledger as it is now: who gets into it
        during the training stands in a later line, and the next scrub takes them out of the generation."""
        self._lake.ledger.load()
        self._known_at_ms = int(self._now_ms())
        report, _ = scrub(self._folder, self._lake)
        return report

    async def _copy_once(self, advance: Callable[[int, int], None]) -> CopyReport:
        settings = self._settings
        partitions = await count_partitions(settings)
        async with _consumer(settings) as consumer:
            codec = await asyncio.to_thread(
                open_codec, settings
            )  # again at every try: the registry may have learnt a schema
            return await copy_records(settings, self._lake, codec, consumer, partitions, advance=advance)

    # 2

    async def _evaluate(self, skip: bool) -> tuple[Decision, dict[str, dict[str, float]]]:
        if skip:
            return Decision("unchecked", "the evaluation was skipped"), {}
        evaluation = await asyncio.to_thread(self._evaluation)
        if evaluation is None:
            return Decision("unchecked", "too few plays to hold some out"), {}
        for warning in evaluation.warnings:
            log.warning("evaluation", warning=warning)
        metrics = {arm: dict(values) for arm, values in evaluation.arms.items()}
        self._told(metrics=metrics, warnings=evaluation.warnings)
        return evaluation.decision, metrics

    def _evaluation(self) -> Evaluation | None:
        train = self._settings.train
        known, known_until_ms = self._in_force()
        self._judged = Judged(None, None, known, known_until_ms)
        holdout = choose_holdout(self._lake, train.holdout_share, known_until_ms)
        if holdout is None:
            return None
        cases = read_cases(self._lake, self._limits, holdout.from_ms)
        past = read_interactions(self._lake, train.alpha, before_ms=holdout.from_ms)
        if not cases or not (past.Cui.data > 0).any():
            return Evaluation({}, 0, holdout, decide({}, 0, train.gate_margin, advisory=holdout.advisory))
        with self._progress.step("train without the held-out plays", train.iterations) as step:
            Y = train_item_factors(past.Cui, train, on_iteration=step.set)
        candidate = make_generation("candidate", past.items, Y, past.popularity, fold_in_parameters(train))
        with self._progress.step("evaluate", 3 if known else 2) as step:
            found = evaluate(candidate, known, cases, holdout, train.gate_margin, advance=lambda arm: step.advance())
        self._judged = Judged(found, candidate, known, known_until_ms)
        return found

    def _in_force(self) -> tuple[Generation | None, int | None]:
        """The generation in force and the time of the newest event it knows; None for one that does not load: a new one mends it."""
        try:
            current = self._folder.read_current()
            if current is None:
                return None, None
            manifest = load_manifest(self._folder.root, current.generation_id)
            generation = load_generation(self._folder.root, current.generation_id)
        except GenerationError as error:
            log.error("generation_in_force_unusable", error=str(error), remedy="the new one is compared with nothing")
            return None, None
        return generation, int(manifest.metrics.get(TRAINING, {}).get("newest_event_ms", manifest.created_at_ms))

    # 3

    async def _publish(
        self, plan: CopyPlan, inputs: str, decision: Decision, metrics: Mapping[str, Mapping[str, float]]
    ) -> Manifest:
        return await asyncio.to_thread(self._publish_now, plan, inputs, decision, metrics)

    def _publish_now(
        self, plan: CopyPlan, inputs: str, decision: Decision, metrics: Mapping[str, Mapping[str, float]]
    ) -> Manifest:
        train = self._settings.train
        interactions: Interactions = read_interactions(self._lake, train.alpha)
        with self._progress.step("train", train.iterations) as step:
            Y = train_item_factors(interactions.Cui, train, on_iteration=step.set)
        with self._progress.step("train the ranker"):
            ranking = train_ranking(self._lake, self._settings)
        with self._progress.step("fold every viewer in", len(interactions.viewers)) as step:
            return publish(
                self._settings.generations_path, self._lake, self._settings, plan, interactions, Y,
                inputs=inputs, metrics=metrics, decision=decision, created_at_ms=self._known_at_ms, ranking=ranking, advance=step.advance,
            )  # fmt: skip

    def _tell_about(self, manifest: Manifest) -> None:
        training = manifest.metrics.get(TRAINING, {})
        self._told(
            decision=manifest.decision.verdict,
            reason=manifest.decision.reason,
            generation_id=manifest.generation_id,
            viewers=int(training.get("viewers", 0)),
            interactions=int(training.get("interactions", 0)),
        )

    # 5

    async def _why_seed(self, plan: CopyPlan) -> str:
        """Why the lake's plays are to be merged in though nobody asked; empty if they are not."""
        seeded = await self._retried(self._store.read_seeded)
        markers = await self._retried(lambda: self._store.read_markers(sorted(plan.cutoffs)))
        older_logs = sorted(Plans(self._lake).streams() - {plan.stream})
        why = why_seed(read_note(self._lake, plan.stream), seeded, markers, older_logs)
        if why:
            log.warning("lake_folded_in", reason=why)
        return why

    async def _seed_in_force(self, plan: CopyPlan) -> None:
        """Merge the lake's plays in by the generation in force: what was lost does not wait for a better one."""
        current = await asyncio.to_thread(self._folder.current_or_none)
        if current is None:
            return
        try:
            again = await self._retried(lambda: self._activator.activate(None, again=False))
            await self._rebuild(again, plan, seed=True)
        except GenerationError as error:
            self._told(seeded="")
            log.error("lake_not_folded_in", error=str(error), remedy="nearline nightly --force --seed")

    async def _rebuild(self, current: Current, plan: CopyPlan, seed: bool) -> None:
        if seed:
            write_note(self._lake, Seeding(plan.stream, plan.cutoffs))

        def facts() -> Any:
            return states_from_lake(self._lake, self._limits) if seed else None

        rebuilt = await self._retried(
            lambda: self._activator.rebuild(
                current,
                facts=facts(),
                seeded=plan.cutoffs if seed else None,
                erased_through_s=self._lake.ledger.through_s,
            )
        )
        self._told(rebuilt=rebuilt)

    # 7

    async def review(self) -> NightlyReport:
        """Write the report. A night without one is still a night: what went wrong is logged."""
        work = asyncio.to_thread(
            review_night, self._settings, self._lake, self._judged, self._report, int(self._now_ms())
        )
        try:
            with self._progress.step("report"):
                page = await self._timed("report", work)
            log.info("night_reported", page=str(page))
        except (NearlineError, OSError) as error:
            log.error("night_not_reported", error=str(error), remedy="the night is done; the next one reports again")
        return self._told()

    # Small things

    def _told(self, **changes: Any) -> NightlyReport:
        self._report = dataclasses.replace(self._report, **changes, seconds=dict(self._seconds))
        return self._report

    async def _timed(self, step: str, work: Awaitable[T]) -> T:
        started = time.monotonic()
        try:
            return await work
        finally:
            self._seconds[step] = round(time.monotonic() - started, 3)

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try again what a server that is away makes fail; every step can be repeated."""
        async for attempt in stamina.retry_context(
            on=TransientError, attempts=ATTEMPTS, wait_max=WAIT_MAX_S, timeout=None
        ):
            with attempt:
                try:
                    return await work()
                except StoreChanged:
                    await self._store.connect()
                    raise
        raise AssertionError("unreachable: the last attempt raises")


async def count_partitions(settings: Settings) -> dict[str, int]:
    """Topic → partitions now, of the three topics that are copied; 0 for one that is not there. Errors: `KafkaUnavailable`."""
    kafka = settings.kafka
    admin = await make_admin(settings)
    try:
        with kafka_errors("describing the topics", settings):
            # All topics, not these by name: asking by name would create one where a broker creates topics by itself.
            there = set(await admin.list_topics())
            counts = dict.fromkeys((kafka.topic, kafka.impressions_topic, kafka.catalogue_topic), 0)
            wanted = [topic for topic in counts if topic in there]
            if wanted:
                counts |= {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics(wanted)}
    finally:
        await admin.close()
    return counts


@asynccontextmanager
async def _consumer(settings: Settings) -> AsyncIterator[Any]:
    consumer = await make_consumer(settings)
    try:
        yield consumer
    finally:
        await stop_client(consumer)
