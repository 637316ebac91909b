"""The two statements by which reservations and transactions change: recorded once, and moved by events.

Both take all their commands as one JSON array, apply them in one data-modifying statement, and return a row for each.
A resource's own effects are spliced in (`tcc.resource`). Order of locks: the row itself, sorted by key, then whatever
the effects lock, sorted too.

Time: `clock` counts the rows of the locking expression before it, so `clock_timestamp()` is read after every lock is
held. `now()`, or `clock_timestamp()` in the WHERE clause of the locking query, would confirm what had expired while
the lock was waited for.
"""

from __future__ import annotations

from typing import Final

from tcc.machine import OPEN, RESERVATION, RESTING, TRANSACTION, State
from tcc.resource import Effects

_RESTING: Final = ", ".join(f"'{state}'" for state in sorted(RESTING))
_OPEN: Final = ", ".join(f"'{state}'" for state in sorted(OPEN))

_COMMAND_COLUMNS: Final = "tenant_id text, id uuid, correlation_id text, actor text, entry_id uuid"

_MOVE_COLUMNS: Final = f"""{_COMMAND_COLUMNS}, event text, reason text, ttl_seconds float8, retry_seconds float8,
      cap timestamptz, attention text, detail jsonb"""

RESERVATION_VIEW: Final = """resource, id, state, reason, reference, transaction_id, claim, detail, attention,
  attention_since, attempts, expires_at, expires_cap, created_at, updated_at"""

TRANSACTION_VIEW: Final = """id, state, reason, reference, confirm, branches, detail, attention,
  attention_since, attempts, expires_at, created_at, updated_at, correlation_id"""


def _commands(columns: str) -> str:
    return f"""ROWS FROM (jsonb_to_recordset(CAST(:commands AS jsonb)) AS ({columns})) WITH ORDINALITY"""


def _names(columns: str) -> str:
    return ", ".join(column.split()[0] for column in columns.replace("\n", " ").split(","))


def _with(*parts: str) -> str:
    return "WITH " + ",\n".join(part.strip().rstrip(",") for part in parts if part.strip())


def try_sql(resource: str, effects: Effects, *, external: bool) -> str:
    """Tries: (ord, known, code, detail of the decision, now, the reservation's columns)."""
    held = State.TRYING if external else State.TRIED
    columns = f"{_COMMAND_COLUMNS}, transaction_id uuid, reference text, claim jsonb, ttl_seconds float8"
    return (
        _with(
            f"""cmd AS MATERIALIZED (
  SELECT * FROM {_commands(columns)} AS c({_names(columns)}, ord))""",
            f"""known AS MATERIALIZED (
  SELECT c.ord, r.* FROM cmd c
  JOIN reservations r ON r.tenant_id = c.tenant_id AND r.resource = '{resource}' AND r.id = c.id)""",
            """fresh AS MATERIALIZED (
  SELECT c.* FROM cmd c WHERE NOT EXISTS (SELECT FROM known k WHERE k.ord = c.ord))""",
            effects.decide,
            """clock AS MATERIALIZED (SELECT clock_timestamp() AS now, count(*) AS decided FROM decided)""",
            f"""recorded AS (
  INSERT INTO reservations (tenant_id, resource, id, state, reason, transaction_id, reference, claim, detail,
    expires_at, due_at, created_at, updated_at, correlation_id)
  SELECT f.tenant_id, '{resource}', f.id, CASE d.code WHEN 'tried' THEN '{held}' ELSE 'refused' END,
    CASE d.code WHEN 'tried' THEN NULL ELSE d.code END, f.transaction_id, f.reference, f.claim, d.detail,
    k.now + make_interval(secs => f.ttl_seconds),
    CASE WHEN d.code = 'tried' AND f.transaction_id IS NULL
         THEN k.now + make_interval(secs => {"LEAST(f.ttl_seconds, :lease_seconds)" if external else "f.ttl_seconds"})
    END,
    k.now, k.now, f.correlation_id
  FROM fresh f JOIN decided d USING (ord) CROSS JOIN clock k
  WHERE d.kept AND d.code <> 'again'
  ORDER BY f.tenant_id, f.id
  ON CONFLICT DO NOTHING
  RETURNING *)""",
            """accepted AS (
  SELECT f.ord, f.tenant_id, f.id, f.transaction_id, f.claim, r.created_at AS now
  FROM recorded r JOIN fresh f USING (tenant_id, id) WHERE r.state <> 'refused')""",
            effects.on_try,
            f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor)
  SELECT f.tenant_id, f.id, f.entry_id, f.transaction_id, '{resource}', r.created_at, 'try', NULL, r.state, r.reason,
    f.correlation_id, f.actor
  FROM recorded r JOIN fresh f USING (tenant_id, id))""",
            _shown(RESERVATION_VIEW, "known x", "recorded x"),
        )
        + f"""
SELECT c.ord, n.id IS NOT NULL AS known, k.now,
  CASE WHEN n.id IS NOT NULL THEN CASE WHEN n.claim = c.claim AND n.transaction_id IS NOT DISTINCT FROM c.transaction_id
                                       THEN 'repeated' ELSE 'id_reused' END
       WHEN d.code = 'tried' AND r.id IS NULL THEN 'again'
       WHEN d.code = 'tried' THEN 'done'
       ELSE d.code END AS code,
  d.detail AS refusal,
  {_prefixed(RESERVATION_VIEW, "s")}
FROM cmd c CROSS JOIN clock k
LEFT JOIN known n ON n.ord = c.ord
LEFT JOIN decided d ON d.ord = c.ord
LEFT JOIN recorded r ON r.tenant_id = c.tenant_id AND r.id = c.id
LEFT JOIN shown s ON s.tenant_id = c.tenant_id AND s.id = c.id"""
    )


def _shown(view: str, *sources: str) -> str:
    """The rows to show, one for each command at most: every source gives other rows."""
    return "shown AS (" + " UNION ALL ".join(f"SELECT {_prefixed(f'tenant_id, {view}', 'x')} FROM {s}" for s in sources) + ")"


def _prefixed(columns: str, relation: str) -> str:
    return ", ".join(f"{relation}.{name.strip()}" for name in columns.replace("\n", " ").split(","))


_UNMOVED: Final = "judged x WHERE NOT EXISTS (SELECT FROM moved_rows m WHERE m.tenant_id = x.tenant_id AND m.id = x.id)"


_SET: Final = f"""state = j.target,
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
      WHEN j.said_attention IS NOT NULL THEN NULL
      WHEN j.event = 'retry' THEN j.now
      WHEN j.target = 'tried' THEN j.until
      WHEN j.target IN ({_RESTING}) THEN j.now + make_interval(secs => COALESCE(j.retry_seconds, :lease_seconds))
    END"""


def _judged(machine_values: str, columns: str, table: str, key: str, *, branch: bool) -> tuple[str, ...]:
    """Lock the rows in order, read the clock, and say of each command what it would do, and whether it may."""
    owner = "l.transaction_id IS NOT DISTINCT FROM l.said_transaction_id" if branch else "true"
    decided_elsewhere = "l.transaction_id IS NOT NULL OR " if branch else ""
    said = "c.transaction_id AS said_transaction_id, c.exchanges," if branch else "NULL::jsonb AS exchanges,"
    return (
        f"cmd AS MATERIALIZED (SELECT * FROM {_commands(columns)} AS c({_names(columns)}, ord))",
        f"machine(event, source, target, guard) AS (VALUES {machine_values})",
        f"""locked AS MATERIALIZED (
  SELECT c.ord, c.event, c.reason AS said_reason, c.ttl_seconds, c.retry_seconds, c.cap, c.detail AS said_detail,
    c.attention AS said_attention, c.correlation_id AS said_correlation_id, c.actor, c.entry_id, {said} r.*
  FROM cmd c JOIN {table} r ON {key}
  ORDER BY r.tenant_id, r.id FOR NO KEY UPDATE OF r)""",
        "clock AS MATERIALIZED (SELECT clock_timestamp() AS now, count(*) AS locked FROM locked)",
        f"""judged AS MATERIALIZED (
  SELECT l.*, k.now, m.target, {owner} AS owned,
    CASE m.guard WHEN 'live' THEN {decided_elsewhere}l.expires_at > k.now
                 WHEN 'expired' THEN l.expires_at <= k.now ELSE true END AS in_time,
    LEAST(CASE WHEN l.ttl_seconds IS NULL THEN l.expires_at
               ELSE GREATEST(l.expires_at, k.now + make_interval(secs => l.ttl_seconds)) END,
          COALESCE(l.cap, l.expires_cap)) AS until
  FROM locked l CROSS JOIN clock k LEFT JOIN machine m ON m.event = l.event AND m.source = l.state)""",
    )


def _journaled(resource: str, transaction: str) -> str:
    return f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor, attempt, exchanges, detail)
  SELECT j.tenant_id, j.id, j.entry_id, {transaction}, {resource}, j.now, j.event,
    j.state, COALESCE(m.state, j.state), j.said_reason, j.said_correlation_id, j.actor, j.attempts, j.exchanges,
    COALESCE(j.said_detail, to_jsonb(j.said_attention))
  FROM judged j LEFT JOIN moved_rows m USING (tenant_id, id) WHERE m.id IS NOT NULL OR j.exchanges IS NOT NULL)"""


def move_sql(resource: str, effects: Effects, *, external: bool) -> str:
    """Moves: (ord, found, state before, moved, in_time, owned, buried, now, the reservation's columns)."""
    machine = RESERVATION if external else RESERVATION.local()
    columns = f"{_MOVE_COLUMNS}, transaction_id uuid, exchanges jsonb"
    return (
        _with(
            *_judged(
                machine.sql_values(),
                columns,
                "reservations",
                f"r.tenant_id = c.tenant_id AND r.resource = '{resource}' AND r.id = c.id",
                branch=True,
            ),
            f"""moved_rows AS (
  UPDATE reservations r SET {_SET},
    due_at = CASE WHEN j.transaction_id IS NULL THEN {_DUE} END
  FROM judged j
  WHERE r.tenant_id = j.tenant_id AND r.resource = '{resource}' AND r.id = j.id AND r.state = j.state
    AND j.target IS NOT NULL AND j.in_time AND j.owned
  RETURNING r.*)""",
            """moved AS (
  SELECT j.ord, j.tenant_id, j.id, j.transaction_id, j.claim, j.event, j.state AS source, j.target,
    j.said_detail AS detail, j.now
  FROM judged j JOIN moved_rows m USING (tenant_id, id))""",
            effects.on_move,
            f"""buried AS (
  INSERT INTO reservations (tenant_id, resource, id, state, reason, transaction_id, claim, expires_at, created_at,
    updated_at, correlation_id)
  SELECT c.tenant_id, '{resource}', c.id, 'cancelled', 'never_tried', c.transaction_id, 'null'::jsonb, k.now, k.now,
    k.now, c.correlation_id
  FROM cmd c CROSS JOIN clock k
  WHERE c.event = 'cancel' AND NOT EXISTS (SELECT FROM locked l WHERE l.ord = c.ord)
  ORDER BY c.tenant_id, c.id
  ON CONFLICT DO NOTHING
  RETURNING *)""",
            _journaled(f"'{resource}'", "j.transaction_id"),
            f"""buried_journal AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor)
  SELECT c.tenant_id, c.id, c.entry_id, c.transaction_id, '{resource}', b.created_at, c.event, NULL, b.state, b.reason,
    c.correlation_id, c.actor
  FROM buried b JOIN cmd c USING (tenant_id, id))""",
            _shown(RESERVATION_VIEW, "moved_rows x", "buried x", _UNMOVED),
        )
        + f"""
SELECT c.ord, j.ord IS NOT NULL AS found, j.state AS before, m.id IS NOT NULL AS moved, b.id IS NOT NULL AS buried,
  j.target IS NOT NULL AS allowed, j.in_time, j.owned, k.now, {_prefixed(RESERVATION_VIEW, "s")}
FROM cmd c CROSS JOIN clock k
LEFT JOIN judged j ON j.ord = c.ord
LEFT JOIN moved_rows m ON m.tenant_id = c.tenant_id AND m.id = c.id
LEFT JOIN buried b ON b.tenant_id = c.tenant_id AND b.id = c.id
LEFT JOIN shown s ON s.tenant_id = c.tenant_id AND s.id = c.id"""
    )


def begin_sql() -> str:
    """Transactions recorded: (ord, now, the transaction's columns); a repeat finds the row that is there."""
    columns = f"""{_COMMAND_COLUMNS}, reference text, confirm text, branches jsonb, ttl_seconds float8,
      retry_seconds float8"""
    return (
        _with(
            f"cmd AS MATERIALIZED (SELECT * FROM {_commands(columns)} AS c({_names(columns)}, ord))",
            """recorded AS (
  INSERT INTO transactions (tenant_id, id, state, reference, confirm, branches, expires_at, due_at,
    created_at, updated_at, correlation_id)
  SELECT c.tenant_id, c.id, 'trying', c.reference, c.confirm, c.branches,
    k.now + make_interval(secs => c.ttl_seconds), k.now + make_interval(secs => LEAST(c.ttl_seconds, c.retry_seconds)),
    k.now, k.now, c.correlation_id
  FROM cmd c CROSS JOIN (SELECT clock_timestamp() AS now) k
  ORDER BY c.tenant_id, c.id
  ON CONFLICT DO NOTHING
  RETURNING *)""",
            """journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, at, event, source, target, correlation_id, actor)
  SELECT c.tenant_id, c.id, c.entry_id, c.id, r.created_at, 'begin', NULL, r.state, c.correlation_id, c.actor
  FROM recorded r JOIN cmd c USING (tenant_id, id))""",
            _shown(TRANSACTION_VIEW, "recorded x", "transactions x JOIN cmd c ON x.tenant_id = c.tenant_id AND x.id = c.id"),
        )
        + f"""
SELECT c.ord, r.id IS NOT NULL AS begun, clock_timestamp() AS now, {_prefixed(TRANSACTION_VIEW, "s")}
FROM cmd c
LEFT JOIN recorded r ON r.tenant_id = c.tenant_id AND r.id = c.id
LEFT JOIN shown s ON s.tenant_id = c.tenant_id AND s.id = c.id"""
    )


def move_transaction_sql() -> str:
    """Transactions moved: (ord, found, state before, moved, in_time, now, the transaction's columns)."""
    return (
        _with(
            *_judged(
                TRANSACTION.sql_values(),
                _MOVE_COLUMNS,
                "transactions",
                "r.tenant_id = c.tenant_id AND r.id = c.id",
                branch=False,
            ),
            f"""moved_rows AS (
  UPDATE transactions r SET {_SET},
    due_at = {_DUE},
    decided_at = CASE WHEN j.target IN ('confirming', 'cancelling') THEN COALESCE(r.decided_at, j.now)
                      ELSE r.decided_at END
  FROM judged j
  WHERE r.tenant_id = j.tenant_id AND r.id = j.id AND r.state = j.state AND j.target IS NOT NULL AND j.in_time
  RETURNING r.*)""",
            _journaled("NULL", "j.id"),
            _shown(TRANSACTION_VIEW, "moved_rows x", _UNMOVED),
        )
        + f"""
SELECT c.ord, j.ord IS NOT NULL AS found, j.state AS before, m.id IS NOT NULL AS moved, false AS buried,
  j.target IS NOT NULL AS allowed, j.in_time, true AS owned, k.now, {_prefixed(TRANSACTION_VIEW, "s")}
FROM cmd c CROSS JOIN clock k
LEFT JOIN judged j ON j.ord = c.ord
LEFT JOIN moved_rows m ON m.tenant_id = c.tenant_id AND m.id = c.id
LEFT JOIN shown s ON s.tenant_id = c.tenant_id AND s.id = c.id"""
    )
