"""What has failed is left alone for so many looks; what has not is tried at once."""

from __future__ import annotations

from runtime.again import Again


def test_what_failed_is_due_at_every_nth_look_and_stays_due_until_it_fails_again() -> None:
    again: Again[str] = Again(3)
    assert again.is_due("a")
    for _ in range(3):
        again.has_failed("a")
        assert [again.is_due("a") for _ in range(5)] == [False, False, True, True, True]


def test_another_one_is_due_at_once_and_does_not_count_as_a_look() -> None:
    again: Again[int] = Again(2)
    again.has_failed(0)
    assert not again.is_due(0)
    assert [again.is_due(1) for _ in range(3)] == [True, True, True]
    assert again.is_due(0)


def test_only_the_first_failure_of_the_same_is_news() -> None:
    again: Again[int] = Again(2)
    assert [again.has_failed(what) for what in (0, 0, 1, 0, None, None)] == [True, False, True, True, True, False]
    assert again.failing is None and again.is_due(0)
