"""`nearline evaluate`: read, replay, measure, show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from batch.backtest.arms import PRODUCT, choose_arms
from batch.backtest.intervals import MINUS, tabulate
from batch.backtest.measures import SEGMENTS, Table, circumstances
from batch.backtest.plays import Plays, read_plays
from batch.backtest.refits import Night, plan_nights
from batch.backtest.replay import MakeArm, replay
from contracts.errors import DataError, UserError
from runtime.progress import ProgressReporter, make_progress
from runtime.sections import RulesSettings
from runtime.settings import Settings, TrainSettings
from viewers.state import Limits

SHOWN = ("hr@10", "ndcg@10", "hr@50", "mrr", "coverage", "novelty", "diversity")
"""Columns of the table for people, in this order."""
WIDTH = 170
"""Characters that the tables need: a narrower terminal wraps them, which is better than cutting figures off."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked. `validation`: the share before the test share is played instead, which itself is not looked at."""

    test_share: float = 0.15
    refit_days: float = 1.0
    arms: str | None = None
    seed: int = 20
    validation: bool = False


@dataclass(frozen=True, slots=True)
class Backtest:
    """What came of it. `asks`: plays before which rows were asked for, by `viewers` viewers, with `refits` refits."""

    table: Table
    asks: int
    viewers: int
    refits: int


def run_backtest(
    path: Path | str, options: Options, settings: Settings, progress: ProgressReporter | None = None
) -> Backtest:
    """Evaluate every arm on a data set. Errors: `UserError` for what cannot be asked, `DataError` for bad data."""
    arms = choose_arms(options.arms)
    plays, first = choose_period(read_plays(path), options)
    nights = plan_nights(plays, first, options.refit_days)
    if not nights[0].known:
        raise DataError(
            f"{path}: nothing was played before the first of the last {len(plays) - first:,} plays, so there is nothing to learn from; "
            "make --test-share smaller"
        )
    return play_back(
        plays,
        nights,
        arms,
        train=settings.train.model_copy(update={"seed": options.seed}),
        limits=Limits(**settings.state.model_dump()),
        rules=settings.rules,
        seed=options.seed,
        progress=progress or make_progress(),
    )


def choose_period(plays: Plays, options: Options) -> tuple[Plays, int]:
    """The plays that exist, and the first of them before which rows are asked for. Errors: `UserError`."""
    share = options.test_share
    if not 0 < share < 1:
        raise UserError(f"--test-share {share:g}: must lie between 0 and 1; 0.15 plays the last 15 %")
    if not 0 < options.refit_days < 100_000:
        raise UserError(f"--refit-days {options.refit_days:g}: must be a positive number of days")
    tested = round(len(plays) * share)
    if not tested:
        raise UserError(f"--test-share {share:g}: not one of {len(plays):,} plays; make it larger")
    if options.validation:
        plays = plays.first(len(plays) - tested)
    if tested >= len(plays):
        raise UserError(
            f"--test-share {share:g}: leaves nothing of {len(plays):,} plays to learn from; make it smaller"
        )
    return plays, len(plays) - tested


def play_back(
    plays: Plays,
    nights: list[Night],
    arms: dict[str, MakeArm],
    *,
    train: TrainSettings,
    limits: Limits,
    rules: RulesSettings,
    seed: int,
    progress: ProgressReporter,
) -> Backtest:
    """Replay and measure."""
    first, stop = nights[0].start, nights[-1].stop
    with progress.step("replay", stop - first) as step:
        answers = replay(plays, nights, arms, train=train, limits=limits, rules=rules, advance=step.advance)
    asked = circumstances(plays, nights)
    with progress.step("intervals"):
        table = tabulate(plays, nights, asked, answers, seed)
    return Backtest(table, stop - first, len(set(asked.viewer.tolist())), len(nights))


def render(backtest: Backtest, console: Console) -> None:
    """Tables for people: every measure over all asks; the hit rate by segment, and the product's differences to the others."""
    console.print(
        f"{backtest.asks:,} plays of {backtest.viewers:,} viewers, {backtest.refits:,} refits; "
        "±: half of the 95 % interval by bootstrap over viewers, which --json gives whole"
    )
    arms = {name: of for name, of in backtest.table.items() if MINUS not in name}
    shown = [name for name in SHOWN if any(name in of["all"] for of in arms.values())]
    overall = RichTable("all", *shown)
    for arm, of in arms.items():
        overall.add_row(arm, *(_cell(of["all"].get(name)) for name in shown))
    segments = [name for name in SEGMENTS if any(name in of for of in arms.values())]
    by_segment = RichTable("hr@10", *segments)
    differences = {name: of for name, of in backtest.table.items() if MINUS in name}
    told = {name: of for name, of in differences.items() if PRODUCT in name.split(MINUS)} or differences
    for arm, by in (*arms.items(), *told.items()):
        by_segment.add_row(arm, *(_cell(by.get(name, {}).get("hr@10")) for name in segments))
    console.width = max(console.width, WIDTH)
    for table in (overall, by_segment):
        console.print(table)


def _cell(figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return ""
    value, low, high = figure
    digits = 2 if abs(value) >= 1 else 4
    return f"{value:.{digits}f} ±{(high - low) / 2:.{digits}f}"
