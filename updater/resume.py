"""`nearline resume`: clear a halt, and say what is next."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.settings import Settings
from viewers.store import Store


@dataclass(frozen=True, slots=True)
class Cleared:
    """`stream`: `topic@epoch`. `reason`: why it was halted, None if it was not. `next`: what a person does now, in order."""

    stream: str
    reason: str | None
    next: tuple[str, ...]

    def summary(self) -> str:
        """Some lines for a person."""
        head = (
            f"{self.stream}: nothing was halted"
            if self.reason is None
            else f"{self.stream}: halt cleared: {self.reason}"
        )
        return "\n".join([head, *(f"next: {step}" for step in self.next)])


async def clear_halt(settings: Settings, store: Store) -> Cleared:
    """Clear the halt of the configured stream. Whatever was its cause and has not been mended halts the updaters again: nothing is
    passed by clearing."""
    stream, epoch = settings.kafka.stream, settings.kafka.stream_epoch
    reason = await store.read_halt()
    if reason is None:
        return Cleared(
            stream,
            None,
            (
                "if an updater says that it is halted, it was started with another NEARLINE_STORE__NAMESPACE, NEARLINE_KAFKA__TOPIC or "
                f"NEARLINE_KAFKA__STREAM_EPOCH than this command (here {settings.store.namespace}, {settings.kafka.topic}, {epoch})",
            ),
        )
    await store.write_halt(None)
    return Cleared(
        stream,
        reason,
        (
            "do what the message above says, if that has not been done: the same cause halts the updaters again",
            "start the updaters (an orchestrator starts those that left by itself): they go on at the store's markers",
            f"nearline_lag_records and nearline_unaccounted in each updater's /metrics fall to 0 once {stream} has been read",
        ),
    )
