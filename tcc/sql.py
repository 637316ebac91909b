"""The statements by which reservations and transactions change: recorded once, and moved by events.

Each takes all its commands as one JSON array, applies them in one data-modifying statement, but for those whose
numbers are in `skip`, and returns rows of `ROW`: for what went as was to be expected, nothing but the time. A
resource's own effects are spliced in (`tcc.resource`). Order of
locks: rows that are there, sorted by key, then whatever the effects lock, sorted too, then rows that are new.

Time: `clock` counts the rows of the locking expression before it, so `clock_timestamp()` is read after every lock is
held. `now()`, or `clock_timestamp()` in the WHERE clause of the locking query, would confirm what had expired while
the lock was waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tcc.machine import RESERVATION, RESTING, TRANSACTION, Event, Guard, Machine, Reason, State
from tcc.resource import Effects

_RESTING: Final = ", ".join(f"'{state}'" for state in sorted(RESTING))

COMMAND_COLUMNS: Final = "tenant_id text, id uuid, correlation_id text, actor text, entry_id uuid"

_MOVE_COLUMNS: Final = f"""{COMMAND_COLUMNS}, event text, reason text, ttl_seconds float8, retry_seconds float8,
      cap timestamptz, attention text, detail jsonb"""

TRY_COLUMNS: Final = f"{COMMAND_COLUMNS}, transaction_id uuid, reference text, claim jsonb, ttl_seconds float8"

BEGIN_COLUMNS: Final = f"""{COMMAND_COLUMNS}, reference text, confirm text, branches jsonb, ttl_seconds float8,
      retry_seconds float8"""

_BRANCH_COLUMNS: Final = ", transaction_id uuid, exchanges jsonb"

RESERVATION_VIEW: Final = """resource, id, state, reason, reference, transaction_id, claim, detail, attention,
  attention_since, attempts, expires_at, expires_cap, created_at, updated_at"""

TRANSACTION_VIEW: Final = """id, state, reason, reference, confirm, branches, detail, attention,
  attention_since, attempts, expires_at, created_at, updated_at, correlation_id"""

ROW: Final = {
    "step": "int",
    "now": "timestamptz",
    "ord": "bigint",
    "how": "text",
    "ok": "boolean",
    "source": "text",
    "allowed": "boolean",
    "in_time": "boolean",
    "owned": "boolean",
    "kept": "boolean",
    "same": "boolean",
    "confirm": "text",
    "branches": "jsonb",
    "correlation_id": "text",
    "resource": "text",
    "id": "uuid",
    "state": "text",
    "reason": "text",
    "reference": "text",
    "transaction_id": "uuid",
    "claim": "jsonb",
    "detail": "jsonb",
    "attention": "text",
    "attention_since": "timestamptz",
    "attempts": "int",
    "expires_at": "timestamptz",
    "expires_cap": "timestamptz",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
}
"""What became of the command with the number `ord`, from 1, or what was found: whatever the statement, a row looks like
this, with nulls where it has nothing to say. `step` is what the statement was told to say. `how`:

`moved`       an event had its way; the row after it
`found`       it had not: `source` is the state that it found, and what stood against it is `allowed` (by the machine),
              `in_time` and `owned`
`missing`     there is no such row
`known`       there is one already, where one was to be recorded
`again`       a Try that would fit, but not behind those before it: decide again
`there`       the row that was found; `same` if it is what a Try or Begin asked for
`buried`      a tombstone; the row
`held`        a key's row was there
null          nothing but the clock, in a row with no `ord`: a command that no row names had its way at that time, and
              what that leaves behind is known

and otherwise why a Try was refused (`kept`, if it was recorded as refused). `ok`: what comes after it may be applied.
"""


def row_of(view: str = "", relation: str = "", **given: str) -> str:
    """The columns of `ROW`: those of a view, those given, and nulls."""
    given["step"] = ":step"
    given |= {name.strip(): f"{relation}.{name.strip()}" for name in view.replace("\n", " ").split(",") if view}
    return ", ".join(f"CAST({given.get(name, 'NULL')} AS {type_}) AS {name}" for name, type_ in ROW.items())


def _cmd(columns: str, resource: str | None = None) -> str:
    """The commands as rows, numbered from 1 in `ord`. `resource`, where there is one, is a column as any other: a
    constant part of a key would invite the planner to scan all rows that have it."""
    constant = f", CAST('{resource}' AS text) AS resource" if resource else ""
    return rows_of("cmd", "commands", columns, constant, "WHERE c.ord <> ALL (CAST(:skip AS bigint[]))")


def rows_of(name: str, parameter: str, columns: str, constant: str = "", where: str = "") -> str:
    """A JSON array as the rows of a common table expression, numbered from 1 in `ord`."""
    names = ", ".join(column.split()[0] for column in columns.replace("\n", " ").split(","))
    return f"""{name} AS MATERIALIZED (
  SELECT c.*{constant}
  FROM ROWS FROM (jsonb_to_recordset(CAST(:{parameter} AS jsonb)) AS ({columns})) WITH ORDINALITY AS c({names}, ord)
  {where})"""


def joined(*parts: str) -> str:
    return "WITH " + ",\n".join(part.strip().rstrip(",") for part in parts if part.strip())


RECORDED: Final = """recorded AS (
  INSERT INTO reservations (tenant_id, resource, id, state, reason, transaction_id, reference, claim, detail,
    expires_at, due_at, created_at, updated_at, correlation_id)
  SELECT w.tenant_id, w.resource, w.id, w.state, w.code, w.transaction_id, w.reference, w.claim, w.detail,
    w.now + make_interval(secs => w.ttl_seconds),
    CASE WHEN w.transaction_id IS NULL AND w.state <> 'refused' THEN
      w.now + make_interval(secs => CASE w.state WHEN 'trying' THEN LEAST(w.ttl_seconds, :lease_seconds)
                                                 ELSE w.ttl_seconds END) END,
    w.now, w.now, w.correlation_id
  FROM written w ORDER BY w.tenant_id, w.resource, w.id)"""
"""Tries that are `written`, held or refused. A branch is due to nobody: its transaction is."""

BEGUN: Final = """begun AS (
  INSERT INTO transactions (tenant_id, id, state, reference, confirm, branches, expires_at, due_at,
    created_at, updated_at, correlation_id)
  SELECT f.tenant_id, f.id, 'trying', f.reference, f.confirm, f.branches,
    f.now + make_interval(secs => f.ttl_seconds), f.now + make_interval(secs => LEAST(f.ttl_seconds, f.retry_seconds)),
    f.now, f.now, f.correlation_id
  FROM fresh f ORDER BY f.tenant_id, f.id)"""
"""Transactions that are `fresh`."""

_TRIES_ENTERED: Final = """SELECT w.tenant_id, w.id, w.entry_id, w.transaction_id, w.resource, w.now, 'try', NULL,
    w.state, w.code, w.correlation_id, w.actor
  FROM written w"""

_BEGINS_ENTERED: Final = """SELECT f.tenant_id, f.id, f.entry_id, f.id, NULL, f.now, 'begin', NULL, 'trying', NULL,
    f.correlation_id, f.actor
  FROM fresh f"""


def _recorded(entered: str) -> str:
    """The journal's rows of what is recorded."""
    return f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor)
  {entered})"""


def try_sql(resource: str, effects: Effects, held: State) -> str:
    """Tries: a row for each that isn't simply held as it was asked for, so that the clock is always told."""
    refuses = bool(effects.decide)
    written = [
        f"""SELECT a.*, '{held}' AS state, NULL::text AS code, NULL::jsonb AS detail
  FROM {resource}_accepted a"""
    ]
    exceptions = ["SELECT n.ord, 'known' AS how, n.ok, false AS kept, NULL::jsonb AS detail FROM known n"]
    if refuses:
        written.append(f"""SELECT f.*, k.now, 'refused', d.code, d.detail
  FROM {resource}_refused d JOIN {resource}_fresh f ON f.ord = d.ord CROSS JOIN clock k
  WHERE d.kept AND d.code <> 'again'""")
        exceptions.append(f"SELECT d.ord, d.code, false, d.kept, d.detail FROM {resource}_refused d")
    return (
        joined(
            _cmd(TRY_COLUMNS, resource),
            f"""known AS MATERIALIZED (
  SELECT c.ord, {_SAME} AND r.state NOT IN ('refused', 'cancelled', 'cancelling') AS ok
  FROM cmd c JOIN reservations r ON r.id = c.id AND r.resource = c.resource AND r.tenant_id = c.tenant_id)""",
            f"""{resource}_fresh AS MATERIALIZED (
  SELECT c.* FROM cmd c WHERE c.ord NOT IN (SELECT n.ord FROM known n))""",
            effects.decide,
            f"""clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now{f", count(*) AS refused FROM {resource}_refused" if refuses else ""})""",
            f"""{resource}_accepted AS MATERIALIZED (
  SELECT f.*, k.now FROM {resource}_fresh f CROSS JOIN clock k
  {f"WHERE f.ord NOT IN (SELECT d.ord FROM {resource}_refused d)" if refuses else ""})""",
            f"""written AS MATERIALIZED (
  {" UNION ALL ".join(written)})""",
            RECORDED,
            effects.on_try,
            _recorded(_TRIES_ENTERED),
        )
        + f"""
SELECT {row_of(now="k.now", ord="x.ord", how="x.how", ok="x.ok", kept="x.kept", detail="x.detail")}
FROM clock k LEFT JOIN (
  {" UNION ALL ".join(exceptions)}) x ON true"""
    )


_SAME: Final = "r.claim = c.claim AND r.transaction_id IS NOT DISTINCT FROM c.transaction_id"


def found_sql(resource: str) -> str:
    """The reservations that are there under the ids of commands."""
    return (
        joined(_cmd("tenant_id text, id uuid, transaction_id uuid, claim jsonb", resource))
        + f"""
SELECT {row_of(RESERVATION_VIEW, "r", ord="c.ord", how="'there'", ok="true", same=_SAME)}
FROM cmd c JOIN reservations r ON r.id = c.id AND r.resource = c.resource AND r.tenant_id = c.tenant_id"""
    )


def found_transactions_sql() -> str:
    """The transactions that are there under the ids of commands."""
    return (
        joined(_cmd("tenant_id text, id uuid"))
        + f"""
SELECT {row_of(TRANSACTION_VIEW, "r", ord="c.ord", how="'there'", ok="true", same="true")}
FROM cmd c JOIN transactions r ON r.id = c.id AND r.tenant_id = c.tenant_id"""
    )


def assigned(until: str) -> str:
    """What an event `j` makes of a row `r`, which lasts `until` then."""
    return f"""state = j.target,
    reason = COALESCE(j.reason, r.reason),
    expires_at = {until},
    expires_cap = COALESCE(j.cap, r.expires_cap),
    detail = COALESCE(j.detail, r.detail),
    attempts = CASE j.event WHEN 'postpone' THEN r.attempts + 1 ELSE 0 END,
    attention = CASE WHEN j.event = 'postpone' THEN COALESCE(j.attention, r.attention) END,
    attention_since = CASE WHEN j.event = 'postpone' AND j.attention IS NOT NULL
                           THEN COALESCE(r.attention_since, j.now)
                           WHEN j.event = 'postpone' THEN r.attention_since END,
    updated_at = j.now"""


_LEASE: Final = "CAST(:lease_seconds AS float8)"

DUE: Final = f"""CASE
      WHEN j.attention IS NOT NULL THEN CASE WHEN j.target = 'trying' THEN j.until END
      WHEN j.event = 'retry' THEN j.now
      WHEN j.target = 'tried' THEN j.until
      WHEN j.target IN ({_RESTING}) AND j.retry_seconds IS NULL
        AND r.due_at BETWEEN j.now + make_interval(secs => {_LEASE} / 2)
                         AND j.now + make_interval(secs => {_LEASE}) THEN r.due_at
      WHEN j.target IN ({_RESTING}) THEN LEAST(j.now + make_interval(secs => COALESCE(j.retry_seconds, {_LEASE})),
        CASE WHEN j.target = 'trying' THEN j.until END)
    END"""
"""When a row is due to a sweep. A time that is good enough is kept: an update that changes no indexed column touches no
index."""


DECIDED_AT: Final = "CASE WHEN j.target NOT IN ('trying', 'tried') THEN COALESCE(r.decided_at, j.now) END"


def _locked(columns: str, table: str, resource: str | None = None) -> list[str]:
    """The commands, and the rows that they are about, locked in order.

    Of the row there is only what it takes to judge; `j.` columns that have a name of the row's are what was said.
    """
    owner, of_resource = (
        ("r.transaction_id", " AND r.resource = c.resource") if table == "reservations" else ("NULL::uuid", "")
    )
    return [
        _cmd(columns, resource),
        f"""locked AS MATERIALIZED (
  SELECT c.*, {_BEFORE}, {owner} AS owner
  FROM cmd c JOIN {table} r ON r.id = c.id{of_resource} AND r.tenant_id = c.tenant_id
  ORDER BY r.tenant_id, r.id FOR NO KEY UPDATE OF r)""",
    ]


_BEFORE: Final = "r.state AS source, r.attempts, r.expires_at, r.expires_cap"


def _judged(machine: Machine, *, branch: bool) -> list[str]:
    """Read the clock, now that rows are locked, and say of each command what it would do, and whether it may."""
    owned = "l.owner IS NOT DISTINCT FROM l.transaction_id" if branch else "true"
    decided_elsewhere = "l.owner IS NOT NULL OR " if branch else ""
    live, expired = machine.guarded(Guard.LIVE), machine.guarded(Guard.EXPIRED)
    return [
        "clock AS MATERIALIZED (SELECT clock_timestamp() AS now, count(*) AS locked FROM locked)",
        f"""judged AS MATERIALIZED (
  SELECT l.*, k.now, {machine.sql_target("l.event", "l.source")} AS target, {owned} AS owned,
    CASE WHEN l.event IN ({live}) THEN {decided_elsewhere}LEAST(l.expires_at, l.cap, l.expires_cap) > k.now
         WHEN l.event IN ({expired}) THEN LEAST(l.expires_at, l.cap, l.expires_cap) <= k.now ELSE true END AS in_time,
    LEAST(CASE WHEN l.ttl_seconds IS NULL THEN l.expires_at
               ELSE GREATEST(l.expires_at, k.now + make_interval(secs => l.ttl_seconds)) END,
          COALESCE(l.cap, l.expires_cap)) AS until
  FROM locked l CROSS JOIN clock k)""",
    ]


def _moved_rows(table: str, assignments: str) -> str:
    """The one UPDATE that moves a state. Its guard is `j.target`, which the machine has given for the state of the row
    as it is now that we hold its lock. To compare `r.state` again would compare the row as it was before we waited.
    """
    of_resource = " AND r.resource = j.resource" if table == "reservations" else ""
    exchanges = "j.exchanges" if table == "reservations" else "NULL::jsonb"
    return f"""moved_rows AS (
  UPDATE {table} r SET {assigned("j.until")},
    {assignments}
  FROM judged j
  WHERE r.id = j.id{of_resource} AND r.tenant_id = j.tenant_id
    AND j.target IS NOT NULL AND j.in_time AND j.owned
  RETURNING j.ord, j.event, j.source, j.attempts AS attempt, j.reason AS said_reason, j.now,
    COALESCE(j.detail, to_jsonb(j.attention)) AS said, j.correlation_id AS asked_under, j.actor, j.entry_id,
    {exchanges} AS exchanges, r.*)"""


def _journaled(resource: str | None) -> str:
    """A row for whatever moved; and for what was exchanged with the outside, though nothing moved.

    A command that is applied again, since nobody heard of its commit, has its row already.
    """
    of = ", x.transaction_id, x.resource, x.now" if resource else ", x.id, NULL, x.now"
    unmoved = f"""
  UNION ALL SELECT x.tenant_id, x.id, x.entry_id{of}, x.event, x.source, x.source, x.reason, x.correlation_id, x.actor,
    x.attempts, x.exchanges, COALESCE(x.detail, to_jsonb(x.attention))
  FROM {_UNMOVED} AND x.exchanges IS NOT NULL AND NOT EXISTS (
    SELECT FROM transitions t
    WHERE t.tenant_id = x.tenant_id AND t.filed_under = x.transaction_id AND t.entry_id = x.entry_id)"""
    return f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor, attempt, exchanges, detail)
  SELECT x.tenant_id, x.id, x.entry_id{of}, x.event, x.source, x.state, x.said_reason, x.asked_under, x.actor,
    x.attempt, x.exchanges, x.said
  FROM moved_rows x{unmoved if resource else ""}
  ON CONFLICT DO NOTHING)"""


_UNMOVED: Final = "judged x WHERE x.ord NOT IN (SELECT m.ord FROM moved_rows m)"


def _outcomes(machine: Machine, view: str, missing: str) -> str:
    """A row for each command. `missing`: whether it is all right that there is nothing to move."""
    found = {
        "now": "x.now",
        "ord": "x.ord",
        "how": "'found'",
        "ok": f"x.owned AND x.target IS NULL AND {machine.sql_satisfied('x.event', 'x.source')}",
        "source": "x.source",
        "allowed": "x.target IS NOT NULL",
        "in_time": "x.in_time",
        "owned": "x.owned",
    }
    return f"""
SELECT {row_of(view, "x", now="x.now", ord="x.ord", how="'moved'", ok="true", source="x.source")}
FROM moved_rows x
UNION ALL SELECT {row_of(**found)} FROM {_UNMOVED}
UNION ALL SELECT {row_of(now="k.now", ord="c.ord", how="'missing'", ok=missing)}
FROM cmd c CROSS JOIN clock k WHERE c.ord NOT IN (SELECT l.ord FROM locked l)"""


def _moving(locked: Sequence[str], resource: str, effects: Effects, *, external: bool) -> str:
    """What becomes of rows that are locked."""
    return joined(
        *locked,
        *_judged(RESERVATION if external else RESERVATION.local(), branch=True),
        _moved_rows("reservations", f"due_at = CASE WHEN j.owner IS NULL THEN {DUE} END"),
        f"""{resource}_moved AS (
  SELECT m.ord, m.tenant_id, m.id, m.transaction_id, m.claim, m.event, m.source, m.state AS target,
    m.detail, m.now
  FROM moved_rows m)""",
        effects.on_move,
        _journaled(resource),
    )


def move_sql(resource: str, effects: Effects, *, external: bool) -> str:
    """Moves. A cancel that finds nothing is to be buried (`bury_sql`)."""
    locked = _locked(_MOVE_COLUMNS + _BRANCH_COLUMNS, "reservations", resource)
    return _moving(locked, resource, effects, external=external) + _outcomes(
        RESERVATION, RESERVATION_VIEW, missing=f"c.event = '{Event.CANCEL}'"
    )


def expire_sql(resource: str, effects: Effects) -> str:
    """What is due of a resource whose effects are local, expired: (whether it has moved, seconds it was late).

    Moves like any others, but nobody sends their commands: they are for what is due first, and that nobody else has
    locked; as many as there are `entries`, which are ids for the journal. The resource is compared as no index has it:
    all rows of a resource are no way to the few that are due.
    """
    given = {
        "tenant_id": "d.tenant_id",
        "id": "d.id",
        "correlation_id": "d.correlation_id",
        "actor": "CAST(:actor AS text)",
        "entry_id": "(CAST(:entries AS uuid[]))[d.ord]",
        "event": f"'{Event.EXPIRE}'",
        "reason": f"'{Reason.EXPIRED}'",
    }
    types = dict(column.split() for column in (_MOVE_COLUMNS + _BRANCH_COLUMNS).split(","))
    command = ", ".join(f"{given.get(name, f'CAST(NULL AS {type_})')} AS {name}" for name, type_ in types.items())
    locked = [
        f"""due AS MATERIALIZED (
  SELECT r.tenant_id, r.id, r.correlation_id, {_BEFORE}, r.transaction_id AS owner FROM reservations r
  WHERE r.due_at <= now() AND r.resource || '' = '{resource}'
  ORDER BY r.due_at LIMIT cardinality(CAST(:entries AS uuid[])) FOR NO KEY UPDATE SKIP LOCKED)""",
        f"""locked AS MATERIALIZED (
  SELECT {command}, '{resource}' AS resource, d.ord, d.source, d.attempts, d.expires_at, d.expires_cap, d.owner
  FROM (SELECT *, row_number() OVER () AS ord FROM due) d)""",
    ]
    return (
        _moving(locked, resource, effects, external=False)
        + f"""
SELECT true AS moved, EXTRACT(epoch FROM x.now - x.expires_at)::float8 AS late FROM moved_rows x
UNION ALL SELECT false, NULL FROM {_UNMOVED}"""
    )


def bury_sql(resource: str) -> str:
    """Tombstones for cancels that found nothing; no row for an id that somebody recorded meanwhile.

    A statement of its own, after the moves: they lock what the effects share, and a Try locks that before its own row.
    A row that is there by now is not tried to be inserted, which would wait for whoever is moving it.
    """
    return (
        joined(
            _cmd(f"{COMMAND_COLUMNS}, transaction_id uuid", resource),
            "clock AS MATERIALIZED (SELECT clock_timestamp() AS now)",
            """tombstones AS (
  INSERT INTO reservations (tenant_id, resource, id, state, reason, transaction_id, claim, expires_at, created_at,
    updated_at, correlation_id)
  SELECT c.tenant_id, c.resource, c.id, 'cancelled', 'never_tried', c.transaction_id, 'null'::jsonb, k.now, k.now,
    k.now, c.correlation_id
  FROM cmd c CROSS JOIN clock k
  WHERE NOT EXISTS (
    SELECT FROM reservations r WHERE r.id = c.id AND r.resource = c.resource AND r.tenant_id = c.tenant_id)
  ORDER BY c.tenant_id, c.id
  ON CONFLICT DO NOTHING
  RETURNING *)""",
            """buried AS MATERIALIZED (
  SELECT c.ord, c.entry_id, c.actor, t.* FROM tombstones t JOIN cmd c ON c.id = t.id AND c.tenant_id = t.tenant_id)""",
            """journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor)
  SELECT b.tenant_id, b.id, b.entry_id, b.transaction_id, b.resource, b.created_at, 'cancel', NULL, b.state, b.reason,
    b.correlation_id, b.actor
  FROM buried b)""",
        )
        + f"""
SELECT {row_of(RESERVATION_VIEW, "b", now="b.created_at", ord="b.ord", how="'buried'", ok="true")} FROM buried b"""
    )


def begin_sql() -> str:
    """Transactions recorded: a row for each that was there already."""
    return (
        joined(
            _cmd(BEGIN_COLUMNS),
            "clock AS MATERIALIZED (SELECT clock_timestamp() AS now)",
            """known AS MATERIALIZED (
  SELECT c.ord FROM cmd c JOIN transactions r ON r.id = c.id AND r.tenant_id = c.tenant_id)""",
            """fresh AS MATERIALIZED (
  SELECT c.*, k.now FROM cmd c CROSS JOIN clock k WHERE c.ord NOT IN (SELECT n.ord FROM known n))""",
            BEGUN,
            _recorded(_BEGINS_ENTERED),
        )
        + f"""
SELECT {row_of(now="k.now", ord="n.ord", how="CASE WHEN n.ord IS NOT NULL THEN 'known' END", ok="true")}
FROM clock k LEFT JOIN known n ON true"""
    )


def move_transaction_sql() -> str:
    """Transactions moved: as `move_sql`."""
    return joined(
        *_locked(_MOVE_COLUMNS, "transactions"),
        *_judged(TRANSACTION, branch=False),
        _moved_rows(
            "transactions",
            f"""due_at = {DUE},
    decided_at = {DECIDED_AT}""",
        ),
        _journaled(None),
    ) + _outcomes(TRANSACTION, TRANSACTION_VIEW, missing="false")


def lock_transactions_sql() -> str:
    """Transactions locked before anything of theirs, in order, so that two drivers of the same ones can't deadlock."""
    return (
        joined(_cmd("tenant_id text, id uuid"))
        + """
SELECT r.id FROM transactions r JOIN cmd c ON r.id = c.id AND r.tenant_id = c.tenant_id
ORDER BY r.tenant_id, r.id FOR NO KEY UPDATE OF r"""
    )


def held_keys_sql() -> str:
    """Those keys to be taken that have a row. `ok`: it is this very request's, and has no reply yet."""
    return f"""
SELECT {row_of(ord="c.ord", how="'held'", ok="k.status IS NULL AND k.token = c.token")}
FROM unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]), CAST(:keys AS text[]),
    CAST(:tokens AS uuid[])) WITH ORDINALITY AS c(tenant_id, caller, operation, key, token, ord)
JOIN idempotency_keys k USING (tenant_id, caller, operation, key)"""
