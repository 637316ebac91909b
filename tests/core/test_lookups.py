"""What is looked up at once is one query, and everybody gets their own rows, as they are after they asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tcc.lookups import Key, Lookups, Rows


class Shelf:
    """Something to look up in, which answers when it is told to."""

    def __init__(self) -> None:
        self.values = {"a": 1, "b": 2}
        self.asked: list[list[str]] = []
        self.may_answer = asyncio.Event()

    async def query(self, keys: Sequence[Key]) -> Rows:
        names = [name for (name,) in keys]
        self.asked.append(names)
        found: Rows = [(n, name, self.values[name]) for n, name in enumerate(names, start=1) if name in self.values]
        await self.may_answer.wait()
        if "poison" in names:
            raise ConnectionResetError
        return list(reversed(found))


async def asking(lookups: Lookups, *names: str) -> asyncio.Task[Rows]:
    """Ask, and come back once that has been done."""
    task = asyncio.create_task(lookups.rows([(name,) for name in names]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def values(rows: Rows) -> set[tuple[str, int]]:
    return {(name, value) for _, name, value in rows}


async def test_what_is_asked_while_a_query_runs_is_one_query_next_and_everybody_gets_their_own() -> None:
    shelf = Shelf()
    lookups = Lookups(shelf.query)
    first = await asking(lookups, "a")
    later = [await asking(lookups, *names) for names in (["b", "a"], ["nothing"], ["b"], [])]
    shelf.may_answer.set()
    assert values(await first) == {("a", 1)}
    assert [values(await task) for task in later] == [{("a", 1), ("b", 2)}, set(), {("b", 2)}, set()]
    assert shelf.asked == [["a"], ["b", "a", "nothing", "b"]]


async def test_an_answer_is_never_older_than_its_question() -> None:
    shelf = Shelf()
    lookups = Lookups(shelf.query)
    before = await asking(lookups, "a")
    shelf.values["a"] = 10
    after = await asking(lookups, "a")
    shelf.may_answer.set()
    assert (values(await before), values(await after)) == ({("a", 1)}, {("a", 10)})


async def test_who_goes_away_or_asks_for_what_fails_does_not_keep_the_others_from_theirs() -> None:
    shelf = Shelf()
    lookups = Lookups(shelf.query)
    gone = await asking(lookups, "a")
    failing = await asking(lookups, "poison")
    gone.cancel()
    shelf.may_answer.set()
    with pytest.raises(ConnectionResetError):
        await failing
    assert values(await (await asking(lookups, "b"))) == {("b", 2)}


async def test_no_query_is_for_many_more_keys_than_it_may() -> None:
    shelf = Shelf()
    shelf.may_answer.set()
    lookups = Lookups(shelf.query, most=3)
    found = await asyncio.gather(*(lookups.rows([("a",), ("b",)]) for _ in range(5)))
    assert [values(rows) for rows in found] == [{("a", 1), ("b", 2)}] * 5
    assert max(map(len, shelf.asked)) <= 4
