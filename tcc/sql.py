"""The statements by which reservations and transactions change: recorded once, and moved by events.

Each takes all its commands as one JSON array, applies them in one data-modifying statement, and returns a row for each.
A resource's own effects are spliced in (`tcc.resource`). Order of locks: rows that are there, sorted by key, then
whatever the effects lock, sorted too, then rows that are new.

Time: `clock` counts the rows of the locking expression before it, so `clock_timestamp()` is read after every lock is
held. `now()`, or `clock_timestamp()` in the WHERE clause of the locking query, would confirm what had expired while
the lock was waited for.
"""

from __future__ import annotations

from typing import Final

from tcc.machine import RESERVATION, RESTING, TRANSACTION, Machine, State
from tcc.resource import Effects

_RESTING: Final = ", ".join(f"'{state}'" for state in sorted(RESTING))

_COMMAND_COLUMNS: Final = "tenant_id text, id uuid, correlation_id text, actor text, entry_id uuid"

_MOVE_COLUMNS: Final = f"""{_COMMAND_COLUMNS}, event text, reason text, ttl_seconds float8, retry_seconds float8,
      cap timestamptz, attention text, detail jsonb"""

RESERVATION_VIEW: Final = """resource, id, state, reason, reference, transaction_id, claim, detail, attention,
  attention_since, attempts, expires_at, expires_cap, created_at, updated_at"""

TRANSACTION_VIEW: Final = """id, state, reason, reference, confirm, branches, detail, attention,
  attention_since, attempts, expires_at, created_at, updated_at, correlation_id"""


def _cmd(columns: str, resource: str | None = None) -> str:
    """The commands as rows, numbered from 1 in `ord`. `resource`, where there is one, is a column as any other: a
    constant part of a key would invite the planner to scan all rows that have it."""
    names = ", ".join(column.split()[0] for column in columns.replace("\n", " ").split(","))
    constant = f", CAST('{resource}' AS text) AS resource" if resource else ""
    return f"""cmd AS MATERIALIZED (
  SELECT c.*{constant}
  FROM ROWS FROM (jsonb_to_recordset(CAST(:commands AS jsonb)) AS ({columns})) WITH ORDINALITY AS c({names}, ord))"""


def _with(*parts: str) -> str:
    return "WITH " + ",\n".join(part.strip().rstrip(",") for part in parts if part.strip())


def _shown(view: str, *sources: tuple[str, str]) -> str:
    """What became of each command: sources are (what is said, relation `x`); no two show the same `ord`.

    There is one row more where none is shown, so that the clock is always told.
    """
    selects = (f"SELECT x.ord, {said}, {_prefixed(view, 'x')} FROM {relation}" for said, relation in sources)
    return "\n  UNION ALL ".join(selects)


def _prefixed(columns: str, relation: str) -> str:
    return ", ".join(f"{relation}.{name.strip()}" for name in columns.replace("\n", " ").split(","))


_KNOWN_CODE: Final = "CASE WHEN x.same THEN 'repeated' ELSE 'id_reused' END"


def try_sql(resource: str, effects: Effects, *, external: bool) -> str:
    """Tries: (now, ord, code, known, what a refusal found, the reservation's columns)."""
    held = State.TRYING if external else State.TRIED
    due_seconds = "LEAST(f.ttl_seconds, :lease_seconds)" if external else "f.ttl_seconds"
    columns = f"{_COMMAND_COLUMNS}, transaction_id uuid, reference text, claim jsonb, ttl_seconds float8"
    return (
        _with(
            _cmd(columns, resource),
            """known AS MATERIALIZED (
  SELECT c.ord, r.claim = c.claim AND r.transaction_id IS NOT DISTINCT FROM c.transaction_id AS same, r.*
  FROM cmd c JOIN reservations r ON r.id = c.id AND r.resource = c.resource AND r.tenant_id = c.tenant_id)""",
            """fresh AS MATERIALIZED (
  SELECT c.* FROM cmd c WHERE c.ord NOT IN (SELECT k.ord FROM known k))""",
            effects.decide,
            """clock AS MATERIALIZED (SELECT clock_timestamp() AS now, count(*) AS decided FROM decided)""",
            f"""recorded AS (
  INSERT INTO reservations (tenant_id, resource, id, state, reason, transaction_id, reference, claim, detail,
    expires_at, due_at, created_at, updated_at, correlation_id)
  SELECT f.tenant_id, f.resource, f.id, CASE d.code WHEN 'tried' THEN '{held}' ELSE 'refused' END,
    CASE d.code WHEN 'tried' THEN NULL ELSE d.code END, f.transaction_id, f.reference, f.claim, d.detail,
    k.now + make_interval(secs => f.ttl_seconds),
    CASE WHEN d.code = 'tried' AND f.transaction_id IS NULL THEN k.now + make_interval(secs => {due_seconds}) END,
    k.now, k.now, f.correlation_id
  FROM fresh f JOIN decided d ON d.ord = f.ord CROSS JOIN clock k
  WHERE d.kept AND d.code <> 'again'
  ORDER BY f.tenant_id, f.id
  ON CONFLICT DO NOTHING
  RETURNING *)""",
            """written AS MATERIALIZED (
  SELECT f.ord, f.entry_id, f.actor, r.*
  FROM recorded r JOIN fresh f ON f.id = r.id AND f.tenant_id = r.tenant_id)""",
            """accepted AS (
  SELECT w.ord, w.tenant_id, w.id, w.transaction_id, w.claim, w.created_at AS now
  FROM written w WHERE w.state <> 'refused')""",
            effects.on_try,
            """journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor)
  SELECT w.tenant_id, w.id, w.entry_id, w.transaction_id, w.resource, w.created_at, 'try', NULL, w.state, w.reason,
    w.correlation_id, w.actor
  FROM written w)""",
        )
        + f"""
SELECT k.now, s.* FROM clock k LEFT JOIN (
  {
            _shown(
                RESERVATION_VIEW,
                (f"{_KNOWN_CODE} AS code, true AS known, NULL::jsonb AS refusal", "known x"),
                ("CASE x.state WHEN 'refused' THEN x.reason ELSE 'done' END, false, x.detail", "written x"),
            )
        }
  UNION ALL SELECT d.ord, CASE WHEN d.kept THEN 'again' ELSE d.code END, false, d.detail, {
            ", ".join("NULL" for _ in RESERVATION_VIEW.split(","))
        }
  FROM decided d WHERE d.ord NOT IN (SELECT w.ord FROM written w)) s ON true"""
    )


_SET: Final = """state = j.target,
    reason = COALESCE(j.said_reason, r.reason),
    expires_at = j.until,
    expires_cap = COALESCE(j.cap, r.expires_cap),
    detail = COALESCE(j.said_detail, r.detail),
    attempts = CASE j.event WHEN 'postpone' THEN r.attempts + 1 ELSE 0 END,
    attention = CASE WHEN j.event = 'postpone' THEN COALESCE(j.said_attention, r.attention) END,
    attention_since = CASE WHEN j.event = 'postpone' AND j.said_attention IS NOT NULL
                           THEN COALESCE(r.attention_since, j.now)
                           WHEN j.event = 'postpone' THEN r.attention_since END,
    updated_at = j.now"""

_DUE: Final = f"""CASE
      WHEN j.said_attention IS NOT NULL THEN CASE WHEN j.target = 'trying' THEN j.until END
      WHEN j.event = 'retry' THEN j.now
      WHEN j.target = 'tried' THEN j.until
      WHEN j.target IN ({_RESTING}) THEN LEAST(j.now + make_interval(secs => COALESCE(j.retry_seconds, :lease_seconds)),
        CASE WHEN j.target = 'trying' THEN j.until END)
    END"""


def _judged(machine: Machine, columns: str, table: str, resource: str | None) -> tuple[str, ...]:
    """Lock the rows in order, read the clock, and say of each command what it would do, and whether it may."""
    branch = resource is not None
    owner = "l.transaction_id IS NOT DISTINCT FROM l.said_transaction_id" if branch else "true"
    decided_elsewhere = "l.transaction_id IS NOT NULL OR " if branch else ""
    said = "c.transaction_id AS said_transaction_id, c.exchanges," if branch else "NULL::jsonb AS exchanges,"
    of_resource = " AND r.resource = c.resource" if branch else ""
    return (
        _cmd(columns, resource),
        f"machine(event, source, target, guard) AS (VALUES {machine.sql_values()})",
        f"""locked AS MATERIALIZED (
  SELECT c.ord, c.event, c.reason AS said_reason, c.ttl_seconds, c.retry_seconds, c.cap, c.detail AS said_detail,
    c.attention AS said_attention, c.correlation_id AS said_correlation_id, c.actor, c.entry_id, {said} r.*
  FROM cmd c JOIN {table} r ON r.id = c.id{of_resource} AND r.tenant_id = c.tenant_id
  ORDER BY r.tenant_id, r.id FOR NO KEY UPDATE OF r)""",
        "clock AS MATERIALIZED (SELECT clock_timestamp() AS now, count(*) AS locked FROM locked)",
        f"""judged AS MATERIALIZED (
  SELECT l.*, k.now, m.target, {owner} AS owned,
    CASE m.guard WHEN 'live' THEN {decided_elsewhere}LEAST(l.expires_at, l.cap, l.expires_cap) > k.now
                 WHEN 'expired' THEN LEAST(l.expires_at, l.cap, l.expires_cap) <= k.now ELSE true END AS in_time,
    LEAST(CASE WHEN l.ttl_seconds IS NULL THEN l.expires_at
               ELSE GREATEST(l.expires_at, k.now + make_interval(secs => l.ttl_seconds)) END,
          COALESCE(l.cap, l.expires_cap)) AS until
  FROM locked l CROSS JOIN clock k LEFT JOIN machine m ON m.event = l.event AND m.source = l.state)""",
    )


def _moved_rows(table: str, assignments: str) -> str:
    """The one UPDATE that moves a state. Its guard is `j.target`, which the machine has given for the state of the row
    as it is now that we hold its lock. To compare `r.state` again would compare the row as it was before we waited.
    """
    of_resource = " AND r.resource = j.resource" if table == "reservations" else ""
    return f"""moved_rows AS (
  UPDATE {table} r SET {_SET},
    {assignments}
  FROM judged j
  WHERE r.id = j.id{of_resource} AND r.tenant_id = j.tenant_id
    AND j.target IS NOT NULL AND j.in_time AND j.owned
  RETURNING j.ord, j.event, j.state AS source, j.attempts AS attempt, j.said_reason, j.said_detail, j.said_attention,
    j.said_correlation_id, j.actor, j.entry_id, j.exchanges, j.now, r.*)"""


def _journaled(resource: str, transaction: str) -> str:
    """A row for whatever moved; and for what was exchanged with the outside, though nothing moved.

    A command that is applied again, since nobody heard of its commit, has its row already.
    """
    of = f"""x.tenant_id, x.id, x.entry_id, {transaction}, {resource}, x.now, x.event, %s, x.state, x.said_reason,
    x.said_correlation_id, x.actor, %s, x.exchanges, COALESCE(x.said_detail, to_jsonb(x.said_attention))"""
    return f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor, attempt, exchanges, detail)
  SELECT {of % ("x.source", "x.attempt")} FROM moved_rows x
  UNION ALL SELECT {of % ("x.state", "x.attempts")} FROM {_UNMOVED} AND x.exchanges IS NOT NULL
  ON CONFLICT DO NOTHING)"""


_UNMOVED: Final = "judged x WHERE x.ord NOT IN (SELECT m.ord FROM moved_rows m)"


def _outcomes(view: str) -> str:
    return f"""
SELECT k.now, s.* FROM clock k LEFT JOIN (
  {
        _shown(
            view,
            (
                "'moved' AS how, x.source AS before, true AS allowed, true AS in_time, true AS owned",
                "moved_rows x",
            ),
            ("'found', x.state, x.target IS NOT NULL, x.in_time, x.owned", _UNMOVED),
        )
    }) s ON true"""


def move_sql(resource: str, effects: Effects, *, external: bool) -> str:
    """Moves: (now, ord, how, state before, allowed, in_time, owned, the reservation's columns).

    `how` is `moved` or `found` (and not moved); no row: there is no such reservation.
    """
    machine = RESERVATION if external else RESERVATION.local()
    columns = f"{_MOVE_COLUMNS}, transaction_id uuid, exchanges jsonb"
    return _with(
        *_judged(machine, columns, "reservations", resource),
        _moved_rows("reservations", f"due_at = CASE WHEN j.transaction_id IS NULL THEN {_DUE} END"),
        """moved AS (
  SELECT m.ord, m.tenant_id, m.id, m.transaction_id, m.claim, m.event, m.source, m.state AS target,
    m.said_detail AS detail, m.now
  FROM moved_rows m)""",
        effects.on_move,
        _journaled("x.resource", "x.transaction_id"),
    ) + _outcomes(RESERVATION_VIEW)


def bury_sql(resource: str) -> str:
    """Tombstones for cancels that found nothing: (ord, how, the reservation's columns); no row for an id that somebody
    recorded meanwhile.

    A statement of its own, after the moves: they lock what the effects share, and a Try locks that before its own row.
    A row that is there by now is not tried to be inserted, which would wait for whoever is moving it.
    """
    return (
        _with(
            _cmd(f"{_COMMAND_COLUMNS}, transaction_id uuid", resource),
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
{_shown(RESERVATION_VIEW, ("'buried' AS how", "buried x"))}"""
    )


def begin_sql() -> str:
    """Transactions recorded: (now, ord, how, the transaction's columns); a repeat finds the row that is there."""
    columns = f"""{_COMMAND_COLUMNS}, reference text, confirm text, branches jsonb, ttl_seconds float8,
      retry_seconds float8"""
    return (
        _with(
            _cmd(columns),
            "clock AS MATERIALIZED (SELECT clock_timestamp() AS now)",
            """known AS MATERIALIZED (
  SELECT c.ord, r.* FROM cmd c JOIN transactions r ON r.id = c.id AND r.tenant_id = c.tenant_id)""",
            """recorded AS (
  INSERT INTO transactions (tenant_id, id, state, reference, confirm, branches, expires_at, due_at,
    created_at, updated_at, correlation_id)
  SELECT c.tenant_id, c.id, 'trying', c.reference, c.confirm, c.branches,
    k.now + make_interval(secs => c.ttl_seconds), k.now + make_interval(secs => LEAST(c.ttl_seconds, c.retry_seconds)),
    k.now, k.now, c.correlation_id
  FROM cmd c CROSS JOIN clock k
  WHERE c.ord NOT IN (SELECT n.ord FROM known n)
  ORDER BY c.tenant_id, c.id
  RETURNING *)""",
            """written AS MATERIALIZED (
  SELECT c.ord, c.entry_id, c.actor, r.* FROM recorded r JOIN cmd c ON c.id = r.id AND c.tenant_id = r.tenant_id)""",
            """journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, at, event, source, target, correlation_id,
    actor)
  SELECT w.tenant_id, w.id, w.entry_id, w.id, w.created_at, 'begin', NULL, w.state, w.correlation_id, w.actor
  FROM written w)""",
        )
        + f"""
SELECT k.now, s.* FROM clock k LEFT JOIN (
  {_shown(TRANSACTION_VIEW, ("'done' AS how", "written x"), ("'repeated'", "known x"))}) s ON true"""
    )


def move_transaction_sql() -> str:
    """Transactions moved: as `move_sql`."""
    return _with(
        *_judged(TRANSACTION, _MOVE_COLUMNS, "transactions", None),
        _moved_rows(
            "transactions",
            f"""due_at = {_DUE},
    decided_at = CASE WHEN j.target IN ('confirming', 'cancelling') THEN COALESCE(r.decided_at, j.now)
                      ELSE r.decided_at END""",
        ),
        _journaled("NULL", "x.id"),
    ) + _outcomes(TRANSACTION_VIEW)
