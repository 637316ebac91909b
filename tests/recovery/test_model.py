"""Orders of Try, Confirm, Cancel, Expire and Extend, with duplicates, as Hypothesis thinks them up: the service on a
real PostgreSQL against the plain rules of `model.py`, compared row by row after every step.

Nothing sleeps: leases and times to live are longer than any run, and time passes by moving a row's `expires_at` and
`due_at` into the past. Every example has a tenant of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from uuid import UUID

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tcc.idempotency import Held
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tests.recovery.model import Ask, Book, Claim, Fate, Key, Reservation, Shelf, Whole
from tests.recovery.model_service import Rows, Tenant, World, asked, opened

T = TypeVar("T")

EXAMPLES: Final = 45
STEPS: Final = 40
SKUS: Final = ("MUG", "POT", "TEA")
ENDS: Final = ("confirmed", "cancelled", "refused")
RESTS: Final = ("trying", "confirming", "cancelling")
BOOKED_AS: Final = {
    ("orders", "tried"): "pending",
    ("payments", "trying"): "authorising",
    ("payments", "tried"): "authorised",
    ("payments", "refused"): "declined",
    ("payments", "confirming"): "capturing",
    ("payments", "confirmed"): "captured",
    ("payments", "cancelling"): "voiding",
    ("payments", "cancelled"): "voided",
}
"""What a resource's own table calls a state, where that is another word."""
CHARGED: Final[dict[str, set[str | None]]] = {
    "confirmed": {"captured"},
    "confirming": {"authorised"},  # it waits for a person
    "cancelled": {"voided", "declined"},
    "refused": {"declined"},
}
"""What the gateway may hold at the end."""

NOBODYS: Final = 3
"""The number of a transaction that nobody has begun."""

numbers = st.integers(0, 2)
"""Few ids, so that commands meet."""
resources = st.sampled_from(["inventory", "payments", "orders"])
verbs = st.sampled_from(["confirm", "cancel", "expire", "extend"])
keys = st.sampled_from([*[None] * 6, "first", "second"])
times = st.sampled_from([1, 1, 2])
mostly = st.sampled_from([True, True, False])
ttls = st.sampled_from([3600.0, 8 * 86400.0, 600.0])
"""One of them is longer than an authorisation lasts."""
lines = st.lists(
    st.tuples(st.sampled_from([*SKUS, *SKUS, *SKUS, "GHOST"]), st.sampled_from([1, 1, 2, 3, 5])),
    min_size=1,
    max_size=2,
    unique_by=lambda line: line[0],
).map(tuple)
methods = st.sampled_from([*["tok_ok"] * 6, "tok_declined", "tok_nobody", "tok_capture_refused"])


def claims_of(resource: str) -> st.SearchStrategy[Claim]:
    """Claims, few enough for two of the same to come up."""
    if resource == "payments":
        return st.builds(Claim, st.just(resource), method=methods)
    return st.builds(Claim, st.just(resource), lines)


class Draft(msgspec.Struct, frozen=True):
    """A command before its reservation's number has become an id. `claim` is a Try's alone, `ttl_seconds` its and an
    extension's."""

    verb: str
    resource: str
    n: int
    claim: Claim
    ttl_seconds: float
    key: str | None


def drafts_of(verbs: st.SearchStrategy[str]) -> st.SearchStrategy[Draft]:
    """Commands for any reservation."""
    return resources.flatmap(
        lambda resource: st.builds(Draft, verbs, st.just(resource), numbers, claims_of(resource), ttls, keys)
    )


tries = drafts_of(st.just("try"))
moves = drafts_of(verbs)
branches = st.lists(st.sampled_from(["inventory", "orders", "payments"]).flatmap(claims_of), min_size=1, max_size=4)


def same(what: object, expected: object, found: object) -> None:
    """Says what differs, also where pytest doesn't explain assertions."""
    assert expected == found, f"{what}\n  expected: {expected}\n  found:    {found}"


there_is_a_reservation = precondition(lambda machine: bool(machine.book.reservations))
there_is_a_transaction = precondition(lambda machine: bool(machine.book.wholes))


class Orders(RuleBasedStateMachine):
    """What clients, workers and time may do, in any order."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.book = Book()
        self._world = world
        self._tenant = Tenant(world)
        self._ids: dict[tuple[str, int], UUID] = defaultdict(new_id)
        self._begun: dict[int, tuple[UUID, bytes]] = {}
        self._ends: dict[tuple[str, UUID], tuple[str, str | None]] = {}
        self._compared = False

    def singles(self, *states: str) -> list[Key]:
        """Reservations that are nobody's branch, in one of these states."""
        return [key for key, one in self.book.reservations.items() if one.owner is None and one.state in states]

    def transactions(self, *states: str) -> list[UUID]:
        """Transactions in one of these states."""
        return [id for id, whole in self.book.wholes.items() if whole.state in states]

    @initialize(units=st.tuples(*[st.integers(0, 12)] * len(SKUS)))
    def the_shelves_are_filled(self, units: tuple[int, ...]) -> None:
        for sku, available in zip(SKUS, units, strict=True):
            self._run(self._tenant.stock(sku, available))
            self.book.shelves[sku] = Shelf(available)

    @rule(draft=tries, times=times, settled=mostly)
    def a_try(self, draft: Draft, times: int, settled: bool) -> None:
        self._ask(draft, times, settled)

    @there_is_a_reservation
    @rule(draft=moves, times=times, settled=mostly)
    def a_move(self, draft: Draft, times: int, settled: bool) -> None:
        self._ask(draft, times, settled)

    @precondition(lambda machine: machine.singles("tried"))
    @rule(n=st.integers(0, 8), verb=verbs, ttl_seconds=ttls, late=st.booleans(), times=times, settled=mostly)
    def what_is_held_is_moved(
        self, n: int, verb: str, ttl_seconds: float, late: bool, times: int, settled: bool
    ) -> None:
        """`late`: after its time was up."""
        held = self.singles("tried")
        key = held[n % len(held)]
        if late:
            self._time_is_up(key[1], self.book.reservations[key])
        for _ in range(times):
            self._tell(Ask(verb, *key, ttl_seconds=ttl_seconds))
        if settled:
            self._settle(key, 1)

    @rule(drafts=st.lists(st.one_of(tries, moves), min_size=2, max_size=4), one=st.booleans())
    def several_at_once(self, drafts: list[Draft], one: bool) -> None:
        """`one`: all for the same reservation."""
        if one:
            first = drafts[0]
            drafts = [msgspec.structs.replace(d, n=first.n) for d in drafts if d.resource == first.resource]
        asks = [self._command(draft) for draft in drafts]
        answers, moments = zip(*self._run(*(self._tenant.ask(ask) for ask in asks)), strict=True)
        after = self.book.at_once(asks, answers, moments)
        assert after, f"no order explains what was answered at once\n  {asks}\n  {answers}"
        self.book = after

    @there_is_a_reservation
    @rule(n=numbers, drivers=times)
    def the_gateway_answers(self, n: int, drivers: int) -> None:
        self._settle(("payments", self._ids["payments", n]), drivers)

    @there_is_a_reservation
    @rule(resource=resources, n=numbers)
    def time_is_up(self, resource: str, n: int) -> None:
        id = self._ids[resource, n]
        if one := self.book.reservations.get((resource, id)):
            self._time_is_up(id, one)

    @precondition(lambda machine: machine.singles(*RESTS))
    @rule(n=numbers)
    def a_lease_is_over(self, n: int) -> None:
        resting = self.singles(*RESTS)
        key = resting[n % len(resting)]
        self._run(self._tenant.lease_is_over("reservations", key[1]))
        self.book.lease_is_over(self.book.reservations[key])

    @there_is_a_reservation
    @rule(sweepers=times)
    def reservations_are_swept(self, sweepers: int) -> None:
        self._run(*(self._tenant.sweep_reservations() for _ in range(sweepers)))
        self.book.sweep_reservations()

    @rule(
        n=st.integers(0, 4),
        claims=branches,
        auto=st.booleans(),
        ttl_seconds=ttls,
        driven=mostly,
        event=st.one_of(st.none(), verbs),
    )
    def a_transaction_is_begun(
        self, n: int, claims: list[Claim], auto: bool, ttl_seconds: float, driven: bool, event: str | None
    ) -> None:
        """Each number is a request with a key of its own, and asked again. One that isn't `driven` dies after its
        first commit; `event` follows."""
        if n not in self._begun:
            id = new_id()
            self._begun[n] = id, asked(claims, auto, ttl_seconds)
            transaction, _ = self._begin(id, n, claims, auto, ttl_seconds, driven)
            assert transaction
            plans = [((b.resource, b.id), claim) for b, claim in zip(transaction.view.plans(), claims, strict=True)]
            now = transaction.view.created_at
            self.book.begin(id, plans, now, auto=auto, ttl_seconds=ttl_seconds, driven=driven)
        transaction, held = self._begin(new_id(), n, claims, auto, ttl_seconds, driven)
        assert held
        assert transaction is None, "a repeat began a transaction of its own"
        id, fingerprint = self._begun[n]
        reply = held.reply.body.decode() if held.reply else None
        expected = (id, fingerprint, self.book.wholes[id].reply)
        same("what the key holds", expected, (held.subject_id, held.fingerprint, reply))
        if event:
            self._decide(id, event, ttl_seconds, 1, driven)

    @there_is_a_transaction
    @rule(n=st.integers(0, NOBODYS), event=verbs, ttl_seconds=ttls, times=times, driven=mostly)
    def a_decision(self, n: int, event: str, ttl_seconds: float, times: int, driven: bool) -> None:
        self._decide(self._transaction(n), event, ttl_seconds, times, driven)

    @there_is_a_transaction
    @rule(n=st.integers(0, NOBODYS), events=st.lists(verbs, min_size=2, max_size=3), driven=mostly)
    def decisions_at_once(self, n: int, events: list[str], driven: bool) -> None:
        id = self._transaction(n)
        answers, moments = zip(*self._run(*(self._tenant.decide(id, event, 7200) for event in events)), strict=True)
        after = self.book.decide_at_once(id, events, answers, moments, 7200)
        assert after, f"no order explains what was answered at once\n  {events}\n  {answers}"
        self.book = after
        if driven:
            self._drive(id, 2)

    @there_is_a_transaction
    @rule(n=numbers, drivers=times)
    def somebody_drives(self, n: int, drivers: int) -> None:
        self._drive(self._transaction(n), drivers)

    @there_is_a_transaction
    @rule(n=numbers)
    def a_deadline_passes(self, n: int) -> None:
        if whole := self.book.wholes.get(self._transaction(n)):
            self._time_is_up(self._transaction(n), whole)

    @precondition(lambda machine: machine.transactions(*RESTS))
    @rule(n=numbers)
    def a_driver_is_lost(self, n: int) -> None:
        resting = self.transactions(*RESTS)
        id = resting[n % len(resting)]
        self._run(self._tenant.lease_is_over("transactions", id))
        self.book.lease_is_over(self.book.wholes[id])

    @precondition(lambda machine: machine.transactions("tried"))
    @rule(n=numbers, event=verbs, ttl_seconds=ttls, late=st.booleans(), times=times, driven=mostly)
    def what_is_held_together_is_decided(
        self, n: int, event: str, ttl_seconds: float, late: bool, times: int, driven: bool
    ) -> None:
        """`late`: after its deadline."""
        held = self.transactions("tried")
        id = held[n % len(held)]
        if late:
            self._time_is_up(id, self.book.wholes[id])
        self._decide(id, event, ttl_seconds, times, driven)

    @there_is_a_transaction
    @rule(sweepers=times)
    def transactions_are_swept(self, sweepers: int) -> None:
        self._run(*(self._tenant.sweep_transactions() for _ in range(sweepers)))
        self.book.sweep_transactions()

    @there_is_a_transaction
    @rule(n=numbers, branch=numbers, draft=st.one_of(tries, moves))
    def somebody_meddles_with_a_branch(self, n: int, branch: int, draft: Draft) -> None:
        """With one that is recorded: what a stranger did before that would be a Try of the stranger's own."""
        whole = self.book.wholes.get(self._transaction(n))
        if whole and branch < len(whole.branches) and whole.branches[branch][0] in self.book.reservations:
            key, claim = whole.branches[branch]
            self._tell(Ask(draft.verb, *key, claim if draft.verb == "try" else None, draft.ttl_seconds))

    @invariant()
    def everything_is_as_the_book_says(self) -> None:
        rows = self._one(self._tenant.read())
        self._compare_stock(rows)
        self._compare_states(rows)
        self._compare_times(rows)
        for table, found in (("reservations", rows.reservations), ("transactions", rows.transactions)):
            for row in found:
                if row["state"] in ENDS:
                    end = (row["state"], row["reason"])
                    same("an end never changes", self._ends.setdefault((table, row["id"]), end), end)
        self._compared = True

    def _compare_stock(self, rows: Rows) -> None:
        """Against the live reservations too, and not only against the book's own shelves."""
        live: dict[str, int] = defaultdict(int)
        for one in self.book.reservations.values():
            if one.resource == "inventory" and one.state == "tried" and one.claim:
                for sku, quantity in one.claim.lines:
                    live[sku] += quantity
        for row in rows.shelves:
            same((row["sku"], "held"), live[row["sku"]], row["held"])
            same((row["sku"], "on hand"), row["available"] + row["held"], row["on_hand"])
        found = {row["sku"]: Shelf(row["available"], row["held"], row["sold"]) for row in rows.shelves}
        same("the shelves", self.book.shelves, found)

    def _compare_states(self, rows: Rows) -> None:
        same(
            "reservations",
            {key: (one.state, one.reason, one.owner, one.attention) for key, one in self.book.reservations.items()},
            {(r["resource"], r["id"]): (*_state(r), r["transaction_id"], r["attention"]) for r in rows.reservations},
        )
        same(
            "transactions",
            {id: (whole.state, whole.reason, whole.attention) for id, whole in self.book.wholes.items()},
            {row["id"]: (*_state(row), row["attention"]) for row in rows.transactions},
        )
        same(
            "orders and payments",
            {
                (*key, BOOKED_AS.get((key[0], one.state), one.state))
                for key, one in self.book.reservations.items()
                if one.claim and one.resource != "inventory"
            },
            {(row["resource"], row["id"], row["state"]) for row in rows.booked},
        )
        for whole in self.book.wholes.values():
            if whole.state in ENDS:
                ends = {self.book.reservations[key].state for key, _ in whole.branches if key in self.book.reservations}
                allowed = {"confirmed"} if whole.state == "confirmed" else {"cancelled", "refused"}
                assert ends <= allowed, f"branches don't end alike: {whole}, {ends}"

    def _compare_times(self, rows: Rows) -> None:
        """To the microsecond, while it is undecided. A branch is held as long as its transaction at least."""
        for row in rows.reservations:
            one = self.book.reservations[row["resource"], row["id"]]
            if one.outside and one.state == "tried" and one.cap is None:
                assert row["expires_cap"], f"an authorisation lapses: {row}"
                one.limit(row["expires_cap"])
            if one.owner is None and one.state in ("trying", "tried"):
                same(row, (one.expires_at, one.cap), (row["expires_at"], row["expires_cap"]))
        for row in rows.transactions:
            whole = self.book.wholes[row["id"]]
            held = [self.book.reservations[key] for key, _ in whole.branches if key in self.book.reservations]
            if whole.state == "tried":
                whole.limit(min((one.cap for one in held if one.cap), default=None))
            if whole.state in ("trying", "tried"):
                same(row, (whole.expires_at, whole.cap), (row["expires_at"], row["expires_cap"]))
        for row in rows.reservations:
            owner = self.book.wholes.get(row["transaction_id"])
            if owner is not None and owner.state == "tried":
                assert row["expires_at"] >= owner.expires_at, f"a branch is given up first: {row}"

    def teardown(self) -> None:
        """When all time is up and everything was swept, everything is at its end, at the gateway too."""
        if not self._compared:
            return
        for (_, id), one in self.book.reservations.items():
            if one.owner is None:
                self._time_is_up(id, one)
        for id, whole in self.book.wholes.items():
            self._time_is_up(id, whole)
        self.transactions_are_swept(1)
        self.reservations_are_swept(1)
        self.everything_is_as_the_book_says()
        fates: list[Fate] = [*self.book.reservations.values(), *self.book.wholes.values()]
        same("still open", [], [fate for fate in fates if fate.state not in ENDS and not fate.attention])
        standings = self._one(self._tenant.standings())
        for (resource, id), one in self.book.reservations.items():
            if resource == "payments":
                allowed = CHARGED[one.state] if one.claim else {None}
                assert standings.get(id) in allowed, f"{one} is {standings.get(id)} at the gateway"

    def _run(self, *work: Coroutine[Any, Any, T]) -> list[T]:
        self._compared = False
        return self._world.run(*work)

    def _one(self, work: Coroutine[Any, Any, T]) -> T:
        return self._run(work)[0]

    def _command(self, draft: Draft) -> Ask:
        claim = draft.claim if draft.verb == "try" else None
        ttl_seconds = draft.ttl_seconds if draft.verb in ("try", "extend") else 0
        return Ask(draft.verb, draft.resource, self._ids[draft.resource, draft.n], claim, ttl_seconds, draft.key)

    def _ask(self, draft: Draft, times: int, settled: bool) -> None:
        ask = self._command(draft)
        for _ in range(times):
            self._tell(ask)
        if settled:
            self._settle((ask.resource, ask.id), 1)

    def _tell(self, ask: Ask) -> None:
        answer, now = self._one(self._tenant.ask(ask))
        same(ask, self.book.ask(ask, now), answer)

    def _settle(self, key: Key, drivers: int) -> None:
        self._run(*(self._tenant.settle(key) for _ in range(drivers)))
        self.book.settle(key)

    def _transaction(self, n: int) -> UUID:
        """One of the last that were begun, or an id that is nobody's."""
        begun = list(self.book.wholes)
        return self._ids["transactions", n] if n == NOBODYS else begun[-1 - n % len(begun)]

    def _begin(
        self, id: UUID, n: int, claims: list[Claim], auto: bool, ttl_seconds: float, driven: bool
    ) -> tuple[Transaction | None, Held | None]:
        request = f"request {n}"
        return self._one(self._tenant.begin(id, request, claims, auto=auto, ttl_seconds=ttl_seconds, driven=driven))

    def _decide(self, id: UUID, event: str, ttl_seconds: float, times: int, driven: bool) -> None:
        for _ in range(times):
            answer, now = self._one(self._tenant.decide(id, event, ttl_seconds))
            same((event, id), self.book.decide(id, event, now, ttl_seconds), answer)
        if driven:
            self._drive(id, 1)

    def _drive(self, id: UUID, drivers: int) -> None:
        if id in self.book.wholes:
            self._run(*(self._tenant.drive(id) for _ in range(drivers)))
            self.book.drive(id)

    def _time_is_up(self, id: UUID, fate: Reservation | Whole) -> None:
        table = "reservations" if isinstance(fate, Reservation) else "transactions"
        fate.expires_at = self._one(self._tenant.time_is_up(table, id))
        self.book.time_is_up(fate)


def _state(row: Any) -> tuple[str, str | None]:
    return row["state"], row["reason"]


def run_model(database_url: str, environment: dict[str, str], examples: int, seed: int | None = None) -> None:
    """Play so many examples; raise on the first that differs from the rules, made as small as can be.

    The same `seed` plays the same examples; without one, every run does. Nobody else may work on the database.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=seed is None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    with opened(database_url, environment) as world:

        def machine() -> Orders:
            return Orders(world)

        factory: Any = machine if seed is None else hypothesis.seed(seed)(machine)
        run_state_machine_as_test(factory, settings=chosen)


def test_orders_of_commands_end_as_a_few_plain_rules_say(database_url: str, environment: dict[str, str]) -> None:
    run_model(database_url, environment, EXAMPLES)
