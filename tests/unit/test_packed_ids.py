"""Packed ids: what goes in comes out, in one spelling, and in fewer bytes than text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.packed_ids import pack_ids, unpack_ids

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:|@~-"


@st.composite
def lists_of_ids(draw: st.DrawFn) -> list[str]:
    alphabet = draw(st.sampled_from([1, 2, 16, 17, 32, 33, 64, 65, 69]))
    return draw(
        st.lists(st.text(CHARACTERS[:alphabet], min_size=1, max_size=draw(st.sampled_from([1, 9, 128]))), max_size=40)
    )


@given(lists_of_ids(), st.binary(max_size=3), st.binary(max_size=3))
def test_ids_come_back_as_they_went(ids: list[str], before: bytes, behind: bytes) -> None:
    data = before + pack_ids(ids) + behind
    assert unpack_ids(data, len(before), len(ids)) == (ids, len(data) - len(behind))


@given(lists_of_ids(), st.data())
def test_changed_bytes_are_refused_or_the_one_spelling_of_other_ids(ids: list[str], data: st.DataObject) -> None:
    packed = bytearray(pack_ids(ids))
    if not packed:
        return
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found, end = unpack_ids(bytes(packed), 0, len(ids))
    except (ValueError, IndexError):
        return
    assert pack_ids(found) == packed[:end]


def test_seventy_ids_of_a_catalogue_take_half_a_byte_a_character() -> None:
    assert len(pack_ids([f"tt{i * 37:07d}" for i in range(70)])) == 1 + 11 + 1 + 70 * 9 // 2


@pytest.mark.parametrize("ids", [[""], ["a", ""], ["ü"], ["a" * 256]])
def test_what_is_no_id_is_not_packed(ids: list[str]) -> None:
    with pytest.raises(ValueError, match="packed ids are ASCII"):
        pack_ids(ids)
