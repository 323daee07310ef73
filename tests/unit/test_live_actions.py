"""The buttons' logic with hands that do nothing: what is waited for, what is refused, and that the verdict is the oracle's alone."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from contracts.codec import Codec
from contracts.errors import KafkaUnavailable, NearlineError, RecordError, UserError
from contracts.events import validate
from sandbox import live_actions
from sandbox.action_views import ACTIONS, ActionName, ActionView, Refused, Verdict
from sandbox.live_actions import POISON_RECORDS, Actions, DeadLetter, Hands
from sandbox.live_hands import poison_of, whole_play
from updater.deadletter import FLOOD_RECORDS, FLOOD_WINDOW

DEADLINE_S = 20.0
FINE = Verdict(viewers=3, plays=9, events=20)


class Service:
    """A log of two partitions and an updater that finishes what is sent, unless it is down or slow."""

    def __init__(self) -> None:
        self.end = {0: 10, 1: 10}
        self.at = {0: 10, 1: 10}
        self.instance, self.activation, self.down = "a", 1, False
        self.sent = 20
        self.letters: list[DeadLetter] = []
        self.checked: list[tuple[int, dict[int, int]]] = []
        self.verdict: Verdict | NearlineError = FINE
        self.night = asyncio.Event()

    async def ends(self) -> dict[int, int]:
        return dict(self.end)

    async def positions(self) -> dict[int, int]:
        return dict(self.at)

    async def lag(self) -> int:
        return sum(self.end.values()) - sum(self.at.values())

    def finish(self) -> None:
        self.at = dict(self.end)

    async def kill(self) -> int:
        self.down = True
        self.end[0] += 5
        asyncio.get_running_loop().call_later(0.05, self.come_back)
        return 4711

    def come_back(self) -> None:
        self.instance, self.down = "b", False
        self.finish()

    async def send_poison(self, count: int) -> list[tuple[int, int]]:
        places = [(0, self.end[0] + number) for number in range(count)]
        self.end[0] += count
        self.sent += count
        self.letters = [DeadLetter(place, "InvalidEvent", f"reason {place[1]}") for place in places]
        self.finish()
        return places

    async def read_letters(self) -> list[DeadLetter]:
        return self.letters

    async def send_plays(self, count: int) -> list[tuple[str, int]]:
        self.end[1] += count
        self.sent += count
        asyncio.get_running_loop().call_later(0.05, self.finish)
        return [(f"v{number}", 950 + number) for number in range(count)]

    async def waits_ms(self, plays: Any) -> list[float]:
        return [float(time_ms) for _, time_ms in plays]

    async def nightly(self) -> str:
        await self.night.wait()
        self.activation = 2
        return "generation g2 as activation 2"

    async def acknowledged(self) -> int:
        return self.sent

    async def check(self, sent: int) -> Verdict:
        self.checked.append((sent, dict(self.at)))
        if isinstance(self.verdict, NearlineError):
            raise self.verdict
        return self.verdict

    async def stats(self) -> dict[str, Any]:
        if self.down:
            raise KafkaUnavailable("away")
        fresh = {"count": 1, "p99": 0.02, "max": 1.5}
        return {
            **{"instance": self.instance, "activation": self.activation, "ready": True},
            **{"freshness_recent_s": fresh, "freshness_s": fresh},
        }

    def hands(self) -> Hands:
        return Hands(
            log=self,
            kill=self.kill,
            send_poison=self.send_poison,
            letters=self.read_letters,
            send_plays=self.send_plays,
            waits_ms=self.waits_ms,
            nightly=self.nightly,
            sent=self.acknowledged,
            check=self.check,
            stats=self.stats,
        )


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def actions(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("SAMPLE_S", "POLL_S", "LETTERS_POLL_S"):
        monkeypatch.setattr(live_actions, name, 0.01)
    made = Actions(service.hands(), burst_plays=100)
    yield made
    await made.close()


async def ended(actions: Actions, name: ActionName) -> ActionView:
    async with asyncio.timeout(DEADLINE_S):
        while actions.running(name):  # noqa: ASYNC110 - polls with a deadline
            await asyncio.sleep(0.01)
    return next(view for view in actions.views() if view.name == name)


def figures(view: ActionView) -> dict[str, str]:
    return {figure.name: figure.text for figure in view.figures}


@pytest.mark.parametrize("name", ACTIONS)
async def test_every_button_ends_with_the_verdict_after_all_of_the_log_is_finished(
    actions: Actions, service: Service, name: ActionName
) -> None:
    """What the oracle is asked about is everything that was sent, and nothing was waiting any more when it was asked."""
    assert all(view.state == "idle" for view in actions.views())
    pressed = await actions.press(name)
    assert (pressed.state, pressed.number) == ("running", 1)
    with pytest.raises(Refused):
        await actions.press(name)
    service.night.set()
    view = await ended(actions, name)
    assert (view.state, view.verdict, view.message) == ("passed", FINE, FINE.sentence())
    assert view.message.startswith("0 lost, 0 doubled: 3 viewers with 9 plays")
    assert service.checked == [(service.sent, service.end)]
    assert (await actions.press(name)).number == 2


async def test_a_kill_tells_the_gap_and_the_row_that_waited_longest(actions: Actions, service: Service) -> None:
    await actions.press("kill")
    view = await ended(actions, "kill")
    assert "4711" in view.steps[0].text
    assert figures(view)["the row that waited longest"] == "1.5 s"
    assert {"nothing written for", "fresh again after"} <= figures(view).keys()


async def test_a_kill_is_over_only_when_another_process_goes_on(
    actions: Actions, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an updater that comes back there is no verdict."""
    monkeypatch.setattr(live_actions, "DRAIN_DEADLINE_S", 0.2)
    monkeypatch.setattr(service, "come_back", lambda: None)
    await actions.press("kill")
    view = await ended(actions, "kill")
    assert (view.state, view.verdict) == ("failed", None)
    assert "no new updater has taken over" in view.message


async def test_poison_is_told_letter_by_letter(actions: Actions, service: Service) -> None:
    await actions.press("poison")
    view = await ended(actions, "poison")
    told = [step.text for step in view.steps if step.text.startswith("Dead letter")]
    assert len(told) == POISON_RECORDS
    assert "partition 0, offset 10: reason 10 (InvalidEvent)" in told[0]
    assert figures(view) == {"dead letters": "6 of 6"}


async def test_a_letter_that_does_not_come_is_a_failure(
    actions: Actions, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However right the states are."""
    monkeypatch.setattr(live_actions, "LETTERS_DEADLINE_S", 0.1)
    monkeypatch.setattr(service, "read_letters", lambda: _nothing())
    actions = Actions(service.hands())
    await actions.press("poison")
    view = await ended(actions, "poison")
    assert (view.state, service.checked) == ("failed", [])
    assert "6 dead letters have not come" in view.message


async def _nothing() -> list[DeadLetter]:
    return []


async def test_poison_stays_below_what_halts_a_stream(actions: Actions, service: Service) -> None:
    """Within the updater's window there is room for three presses; when enough else has passed, for more."""
    for _ in range((FLOOD_RECORDS - 1) // POISON_RECORDS):
        await actions.press("poison")
        await ended(actions, "poison")
    with pytest.raises(Refused, match="halt the stream"):
        await actions.press("poison")
    assert not actions.running("poison")
    assert (await ended(actions, "poison")).state == "passed"  # the last verdict stays
    service.sent += FLOOD_WINDOW + 3_000
    await actions.press("poison")
    assert (await ended(actions, "poison")).state == "passed"


async def test_a_burst_tells_how_long_its_rows_took(actions: Actions, service: Service) -> None:
    await actions.press("burst")
    view = await ended(actions, "burst")
    assert (figures(view)["event → row p50"], figures(view)["event → row p99"]) == ("1.0 s", "1.0 s")
    assert max(behind for _, behind in view.curve) == 100


async def test_a_new_generation_tells_the_swap_and_lets_the_others_be_pressed(
    actions: Actions, service: Service
) -> None:
    await actions.press("generation")
    await actions.press("burst")
    assert (await ended(actions, "burst")).state == "passed"
    with pytest.raises(Refused, match="only one at a time"):
        await actions.press("generation")
    service.night.set()
    view = await ended(actions, "generation")
    assert view.state == "passed"
    assert figures(view)["swapped"] == "activation 1 → 2"


@pytest.mark.parametrize("name", ["burst", "generation"])
async def test_an_updater_that_is_killed_meanwhile_takes_figures_away_but_not_the_verdict(
    actions: Actions, service: Service, monkeypatch: pytest.MonkeyPatch, name: ActionName
) -> None:
    async def away(plays: object) -> list[float]:
        raise KafkaUnavailable("away")

    monkeypatch.setattr(service, "waits_ms", away)
    actions = Actions(service.hands(), burst_plays=10)
    service.down = True
    service.night.set()
    await actions.press(name)
    view = await ended(actions, name)
    assert (view.state, view.verdict) == ("passed", FINE)
    assert not any("→" in figure for figure in figures(view))


@pytest.mark.parametrize(
    "wrong",
    [
        dataclasses.replace(FINE, lost=1),
        dataclasses.replace(FINE, doubled=1),
        dataclasses.replace(FINE, unaccounted=1),
        dataclasses.replace(FINE, problems=("something",)),
        Verdict(viewers=0, plays=0, events=0),
        KafkaUnavailable("the log cannot be read"),
    ],
    ids=str,
)
async def test_what_is_wrong_or_was_not_compared_never_passes(
    actions: Actions, service: Service, wrong: Verdict | NearlineError
) -> None:
    service.verdict = wrong
    await actions.press("burst")
    view = await ended(actions, "burst")
    assert view.state == "failed"
    if isinstance(wrong, NearlineError):
        assert view.message == "No verdict: the log cannot be read"


async def test_rows_that_a_night_left_behind_fail_it(actions: Actions, service: Service) -> None:
    service.verdict = dataclasses.replace(FINE, behind=2)
    service.night.set()
    await actions.press("generation")
    assert "2 rows of an older activation" in (await ended(actions, "generation")).message
    await actions.press("burst")  # rows may well be behind while somebody else's night is under way
    assert (await ended(actions, "burst")).state == "passed"


async def test_an_updater_that_is_down_already_is_told(service: Service) -> None:
    async def nobody() -> int:
        raise UserError("it is being started again")

    actions = Actions(dataclasses.replace(service.hands(), kill=nobody))
    await actions.press("kill")
    assert (await ended(actions, "kill")).message == "No verdict: it is being started again"


async def test_nothing_is_pressed_once_the_demo_ends(actions: Actions, service: Service) -> None:
    """And what was under way has ended."""
    await actions.press("generation")
    await actions.close()
    with pytest.raises(Refused, match="ending"):
        await actions.press("burst")


def test_every_kind_of_poison_is_refused_by_the_contract_for_a_reason_of_its_own() -> None:
    codec = Codec.load()
    event = whole_play("ana-0001", "tt0000001", 5_400_000, 1_790_000_000_000)
    validate(codec.decode_event(codec.encode_event(event)), key=b"ana-0001", timestamp_ms=event.event_time_ms)
    reasons = set()
    for key, value in poison_of(event, codec):
        with pytest.raises(RecordError) as refused:
            validate(codec.decode_event(value), key=key, timestamp_ms=event.event_time_ms)
        reasons.add(str(refused.value))
    assert len(reasons) == POISON_RECORDS
