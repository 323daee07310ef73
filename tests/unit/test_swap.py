"""Which generation serves, and what is told of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from contracts.codec import Codec
from contracts.shares import Share
from embeddings.generations_folder import GenerationsFolder
from tests.worlds import T0, make_generation, write_generation_folder
from updater.swap import Swap
from viewers.state import Limits


async def test_the_age_that_is_told_is_that_of_the_generation_that_serves(tmp_path) -> None:
    """Not of one that stands in CURRENT and waits for its candidate to be mended."""
    for number, name in enumerate(("g1", "g2", "g3")):
        generation = make_generation(20, 4, generation_id=name)
        write_generation_folder(tmp_path, generation, created_at_ms=T0 + number * 60_000)
    folder = GenerationsFolder(tmp_path)
    folder.activate("g1", floor=0)
    with ThreadPoolExecutor(1) as executor:
        swap = Swap(str(tmp_path), Codec.load().encode_row, Limits(), executor, "one")
        assert await swap.check(patient=True)
        folder.share(Share("g3", 50), floor=0)
        folder.activate("g2", floor=0)
        factors = tmp_path / "g3" / "item_factors.npy"
        whole = factors.read_bytes()
        factors.write_bytes(b"damaged")
        assert not await swap.check(patient=True)
        assert (swap.generation_id, swap.created_at_s) == ("g1", T0 / 1000)
        factors.write_bytes(whole)
        assert await swap.check()
        assert (swap.generation_id, swap.created_at_s) == ("g2", T0 / 1000 + 60)


async def test_at_the_start_something_is_prepared_whatever_becomes_of_the_generation(tmp_path) -> None:
    """The first batch is small: preparing it would hold up the event loop, and with it the heartbeats."""
    write_generation_folder(tmp_path, make_generation(20, 4, generation_id="g1"), created_at_ms=T0)
    GenerationsFolder(tmp_path).activate("g1", floor=0)
    (tmp_path / "g1" / "item_factors.npy").write_bytes(b"damaged")
    with ThreadPoolExecutor(1) as executor:
        swap = Swap(str(tmp_path), Codec.load().encode_row, Limits(), executor, "one")
        await swap.prepare_something()
        assert swap.generation_id == ""
        assert swap.rewriter.is_prepared
