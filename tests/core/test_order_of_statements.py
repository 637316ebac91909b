"""In which order the statements of a batch come: each is run once, and so locks its rows in one go."""

from __future__ import annotations

from tcc.groups import next_rank

TRANSACTION, STOCK, ORDERS, CARDS = ((0, True), (1, True), (2, True), (3, True))
AUTHORISED = [CARDS, TRANSACTION, STOCK, ORDERS, CARDS, TRANSACTION]
CANCELLED = [TRANSACTION, STOCK, ORDERS, CARDS]
CONFIRMED_ALONE = [STOCK]


def order(*groups: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """The statements that are run for these groups, one after the other."""
    left = [list(group) for group in groups]
    ran = []
    while left := [group for group in left if group]:
        rank = next_rank(left)
        ran.append(rank)
        for group in left:
            if group[0] == rank:
                del group[0]
    return ran


def test_one_group_is_applied_in_its_own_order() -> None:
    assert order(AUTHORISED) == AUTHORISED


def test_stock_is_locked_once_though_one_group_comes_to_it_later() -> None:
    assert order(AUTHORISED, CONFIRMED_ALONE).count(STOCK) == 1


def test_a_decision_against_waits_for_one_that_is_behind() -> None:
    ran = order(AUTHORISED, CANCELLED)
    assert ran.count(STOCK) == 1
    assert ran.count(ORDERS) == 1


def test_groups_of_one_kind_share_every_statement() -> None:
    assert order(*[AUTHORISED] * 8) == AUTHORISED
