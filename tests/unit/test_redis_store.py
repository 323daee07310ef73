"""The store's client maps every foreign error once: nothing else than our own tree comes out."""

from __future__ import annotations

import inspect

import pytest
import redis.exceptions

from contracts.errors import StoreChanged, StoreUnavailable, TransientError
from contracts.keys import Keys
from viewers.redis_store import RedisStore

FOREIGN = [
    error
    for _, error in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(error, redis.exceptions.RedisError)
]


def make_store() -> RedisStore:
    return RedisStore("redis://user:secret@localhost:1/0", Keys("nl", "t@1"))


@pytest.mark.parametrize("error", [*FOREIGN, OSError, ConnectionResetError, TimeoutError], ids=lambda e: e.__name__)
def test_every_error_of_the_client_becomes_one_of_ours_and_keeps_its_cause(error: type[Exception]) -> None:
    raised = error.__new__(error)
    with pytest.raises(TransientError) as caught, make_store()._translated():
        raise raised
    assert caught.value.__cause__ is raised
    expected = StoreChanged if issubclass(error, redis.exceptions.NoScriptError) else StoreUnavailable
    assert type(caught.value) is expected


async def test_a_server_that_is_gone_is_named_and_its_password_is_not() -> None:
    store = make_store()
    with pytest.raises(StoreUnavailable, match="localhost:1") as caught:
        await store.read_row("ana")
    assert "secret" not in repr(caught.value) + repr(store)
    with pytest.raises(StoreUnavailable, match="localhost:1"):
        await store.read_viewers(["ana"])


def test_keys_of_one_viewer_hold_no_braces_so_their_slot_is_their_own() -> None:
    keys = Keys("nl", "playback@1")
    assert keys.viewer("a:b|c.d") == "nl:v:a:b|c.d"
    assert keys.marker(3) == "nl:marker:playback@1:3"
