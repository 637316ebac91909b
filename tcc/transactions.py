"""What became of Begin and MoveTransaction commands, read from the rows of the statements that applied them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from operator import itemgetter
from typing import Any, Final

import msgspec

from tcc.commands import REPEATED, Begin, Foreseen, MoveTransaction, Outcome, TransactionView
from tcc.machine import TRANSACTION, State
from tcc.reservations import STATES, followed, moved, recorded
from tcc.sql import ROW, TRANSACTION_VIEW

_encode = msgspec.json.Encoder().encode

_COLUMNS: Final = itemgetter(*(list(ROW).index(name.strip()) for name in TRANSACTION_VIEW.split(",")))


def transaction_view(row: Sequence[Any]) -> TransactionView:
    """A transaction from a row whose last columns are those of `tcc.sql.TRANSACTION_VIEW`."""
    id, state, *rest = row[-14:]
    return TransactionView(id, STATES[state], *rest)


def _view(row: Sequence[Any]) -> TransactionView:
    return transaction_view(_COLUMNS(row))


def begun(commands: Sequence[Begin], rows: Sequence[Any]) -> list[Outcome[TransactionView]]:
    """The outcomes of Begins, in their order; a repeat finds the row that is there."""

    def known(command: Begin, row: Sequence[Any]) -> Any:
        return None  # what is there follows in a row of its own

    return recorded(commands, rows, as_asked, known, lambda row, now: Outcome(REPEATED, _view(row), now))


def as_asked(command: Begin, now: datetime) -> TransactionView:
    """The transaction that a Begin has just recorded."""
    return TransactionView(
        command.id,
        State.TRYING,
        None,
        command.reference,
        command.confirm,
        msgspec.Raw(_encode(command.branches)),
        None,
        None,
        None,
        0,
        now + timedelta(seconds=command.ttl_seconds),
        now,
        now,
        command.correlation_id,
    )


_target: Final = cache(TRANSACTION.target)
_guard: Final = cache(TRANSACTION.guard)


def foresee(view: TransactionView, command: MoveTransaction) -> Foreseen | None:
    """What a move leaves behind if nobody else moves the transaction before; None where there is no saying."""
    until = min(view.deadline, command.cap) if command.cap else view.deadline
    return followed(view, command, _target(command.event, view.state), _guard(command.event), deadline=until)


def moved_transactions(commands: Sequence[MoveTransaction], rows: Sequence[Any]) -> list[Outcome[TransactionView]]:
    """The outcomes of events of transactions, in their order."""
    return moved(TRANSACTION, commands, rows, _view)
