"""The two statements that apply a whole batch, if everything is as it was foreseen; and else do nothing.

`tcc.sql` applies commands kind by kind and tells what became of each, whatever it finds. Most find what their callers
expect, who have read the row before, or have just written it. So what they will have come to is worked out here, and
the statement only makes sure: that rows are as they were seen, deadlines not passed, ids and keys free, claims not
refused. This is optimistic concurrency control (Kung and Robinson, 1981), with locks for the moment between the look
and the write. One statement for all kinds of command: what the executor does to begin one costs as much as what a
small batch asks of it.

Order of locks: transactions, the reservations of these, sorted by key, then what the effects lock, then new rows, and
keys last. What nothing else in a statement reads from is written after all that is read, the last expression first:
therefore they stand here the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tcc.machine import Guard
from tcc.resource import Resource
from tcc.sql import (
    BEGIN_COLUMNS,
    BEGUN,
    DECIDED_AT,
    DUE,
    RECORDED,
    TRY_COLUMNS,
    assigned,
    joined,
    rows_of,
)

CHANGE: Final = """tenant_id text, id uuid, resource text, event text, source text, target text, reason text,
      detail jsonb, guard text, seen timestamptz, cap timestamptz"""

LOGGED: Final = {
    "log_tenants": "text[]",
    "log_subjects": "uuid[]",
    "log_ids": "uuid[]",
    "log_transactions": "uuid[]",
    "log_correlations": "text[]",
    "log_actors": "text[]",
    "log_entries": "text[]",
}
"""The rows of the journal: an array for each column. There is one for each group, and in its `entries`, which are JSON,
what became of each of its commands; the view `transitions` has them one by one."""

_JOURNALED: Final = f"""journaled AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, correlation_id, actor, entries, at)
  SELECT c.tenant, c.subject, c.id, c.transaction, c.correlation, c.actor, CAST(c.entries AS jsonb), k.now
  FROM unnest({", ".join(f"CAST(:{name} AS {type_})" for name, type_ in LOGGED.items())})
    AS c(tenant, subject, id, transaction, correlation, actor, entries) CROSS JOIN clock k WHERE k.ok)"""

PROMISE: Final = {
    "tenants": "text[]",
    "callers": "text[]",
    "operations": "text[]",
    "keys": "text[]",
    "tokens": "uuid[]",
    "fingerprints": "bytea[]",
    "subjects": "uuid[]",
    "statuses": "int[]",
    "bodies": "text[]",
    "locations": "text[]",
    "laters": "text[]",
    "ttls": "float8[]",
}
"""What is to become of idempotency keys: an array for each column. A key with a `token` is taken, others are there; one
with a `status` is given a reply. In its body, `mark` stands for the time, and `later` for what is `ttl` seconds later.
"""

_PROMISED: Final = f"""promised AS MATERIALIZED (
  SELECT c.* FROM unnest({", ".join(f"CAST(:{name} AS {type_})" for name, type_ in PROMISE.items())}) WITH ORDINALITY
    AS c(tenant_id, caller, operation, key, token, fingerprint, subject_id, status, said, location, later, ttl, ord))"""

_FREE: Final = """NOT EXISTS (
    SELECT FROM promised p JOIN idempotency_keys k USING (tenant_id, caller, operation, key)
    WHERE p.token IS NOT NULL OR k.status IS NOT NULL)"""
"""That keys are as promised, as far as this statement can see."""


def _written(time: str) -> str:
    utc = f"""to_char(({time}) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    return f"replace({utc}, '.000000Z', 'Z')"


_KEPT: Final = f"""kept AS MATERIALIZED (
  SELECT p.*, convert_to(replace(replace(p.said, p.later, {_written("k.now + make_interval(secs => p.ttl)")}),
    :mark, {_written("k.now")}), 'UTF8') AS body
  FROM promised p CROSS JOIN clock k WHERE k.ok)"""

_TAKEN: Final = """taken AS (
  INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, token, status, body,
    location, created_at)
  SELECT p.tenant_id, p.caller, p.operation, p.key, p.fingerprint, p.subject_id, p.token, p.status, p.body, p.location,
    clock_timestamp()
  FROM kept p WHERE p.token IS NOT NULL ORDER BY p.tenant_id, p.caller, p.operation, p.key)"""

_STORED: Final = """stored AS (
  UPDATE idempotency_keys k SET status = CASE WHEN k.status IS NULL THEN p.status WHEN tcc_overtaken() THEN NULL END,
    body = p.body, location = p.location
  FROM kept p
  WHERE p.token IS NULL AND k.tenant_id = p.tenant_id AND k.caller = p.caller AND k.operation = p.operation
    AND k.key = p.key)"""
"""A row may be newer than the statement sees it: whoever waits too long is told 202, and that is stored as well."""

_TOLD: Final = """
SELECT k.now, k.ok, p.ord, p.body FROM clock k LEFT JOIN kept p ON p.status IS NOT NULL"""
"""One row at least: whether everything was as foreseen, and so was done, and when; the replies as they are stored."""


def _spliced(resources: Sequence[Resource], fragment: str, relation: str) -> list[str]:
    """A fragment of each resource that has one, behind the relation that it reads: `{name}` is the resource's."""
    return [
        part
        for resource in resources
        if (effects := getattr(resource.effects, fragment))
        for part in (relation.format(name=resource.name), effects)
    ]


def record_sql(resources: Sequence[Resource]) -> str:
    """Transactions begun and reservations tried, of any resource.

    The id of what begins here is new, and so are those of its branches: whether they are there is left to the primary
    keys, which would fail the batch.
    """
    refused = [f"SELECT ord FROM {resource.name}_refused" for resource in resources if resource.effects.decide]
    external = ", ".join(f"'{resource.name}'" for resource in resources if resource.external) or "NULL"
    deciders = _spliced(
        resources,
        "decide",
        """{name}_fresh AS MATERIALIZED (
  SELECT c.ord, c.tenant_id, c.id, c.transaction_id, c.claim FROM tries c WHERE c.resource = '{name}')""",
    )
    effects = _spliced(
        resources,
        "on_try",
        """{name}_accepted AS MATERIALIZED (
  SELECT c.ord, c.tenant_id, c.id, c.transaction_id, c.claim, c.now FROM accepted c WHERE c.resource = '{name}')""",
    )
    return (
        joined(
            rows_of("begins", "begins", BEGIN_COLUMNS),
            rows_of("tries", "tries", f"{TRY_COLUMNS}, resource text"),
            _PROMISED,
            *deciders,
            f"""clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now, count(*) = 0 AND {_FREE}
    AND NOT EXISTS (
      SELECT FROM tries c
      JOIN reservations r ON r.id = c.id AND r.resource = c.resource AND r.tenant_id = c.tenant_id
      WHERE c.transaction_id IS NULL OR c.transaction_id NOT IN (SELECT b.id FROM begins b)) AS ok
  FROM ({" UNION ALL ".join(refused) or "SELECT 1 WHERE false"}) d)""",
            _KEPT,
            _TAKEN,
            "fresh AS (SELECT c.*, k.now FROM begins c CROSS JOIN clock k WHERE k.ok)",
            "accepted AS (SELECT c.*, k.now FROM tries c CROSS JOIN clock k WHERE k.ok)",
            f"""written AS MATERIALIZED (
  SELECT c.*, CASE WHEN c.resource IN ({external}) THEN 'trying' ELSE 'tried' END AS state, NULL::text AS code,
    NULL::jsonb AS detail
  FROM accepted c)""",
            _JOURNALED,
            *effects,
            RECORDED,
            BEGUN,
        )
        + _TOLD
    )


def change_sql(resources: Sequence[Resource]) -> str:
    """Transactions moved, and reservations of theirs."""
    effects = _spliced(
        resources,
        "on_move",
        """{name}_moved AS (
  SELECT m.ord, m.tenant_id, m.id, m.transaction_id, m.claim, m.event, m.source, m.target, m.detail, m.now
  FROM moved_reservations m WHERE m.resource = '{name}')""",
    )
    return (
        joined(
            rows_of("changes", "changes", CHANGE),
            _PROMISED,
            """locked AS MATERIALIZED (
  SELECT c.*, r.expires_at, r.expires_cap, r.updated_at = c.seen AS as_seen
  FROM changes c JOIN transactions r ON r.id = c.id AND r.tenant_id = c.tenant_id
  WHERE c.resource IS NULL ORDER BY r.tenant_id, r.id FOR NO KEY UPDATE OF r)""",
            f"""clock AS MATERIALIZED (
  SELECT c.now, c.seen = (SELECT count(*) FROM changes WHERE resource IS NULL) AND COALESCE(c.live > c.now, true)
    AND COALESCE(c.expired <= c.now, true) AND {_FREE} AS ok
  FROM (
    SELECT clock_timestamp() AS now, count(*) FILTER (WHERE l.as_seen) AS seen,
      min(LEAST(l.expires_at, l.cap, l.expires_cap)) FILTER (WHERE l.guard = '{Guard.LIVE}') AS live,
      max(LEAST(l.expires_at, l.cap, l.expires_cap)) FILTER (WHERE l.guard = '{Guard.EXPIRED}') AS expired
    FROM locked l) c)""",
            _KEPT,
            _TAKEN,
            _STORED,
            _JOURNALED,
            """branches AS MATERIALIZED (
  SELECT c.*, k.now, NULL::text AS attention FROM changes c CROSS JOIN clock k WHERE k.ok AND c.resource IS NOT NULL
  ORDER BY c.tenant_id, c.resource, c.id)""",
            f"""moved_reservations AS (
  UPDATE reservations r SET {assigned("LEAST(r.expires_at, COALESCE(j.cap, r.expires_cap))")}
  FROM branches j
  WHERE r.id = j.id AND r.resource = j.resource AND r.tenant_id = j.tenant_id AND r.updated_at = j.seen
  RETURNING j.ord, r.tenant_id, r.id, r.resource, r.transaction_id, r.claim, j.event, j.source,
    r.state AS target, r.detail, j.now)""",
            *effects,
            f"""moved_transactions AS (
  UPDATE transactions r SET {assigned("j.until")},
    due_at = {DUE},
    decided_at = {DECIDED_AT}
  FROM (
    SELECT l.*, k.now, LEAST(l.expires_at, COALESCE(l.cap, l.expires_cap)) AS until, NULL::text AS attention,
      NULL::float8 AS retry_seconds
    FROM locked l CROSS JOIN clock k WHERE k.ok) j
  WHERE r.id = j.id AND r.tenant_id = j.tenant_id)""",
        )
        + f"""{_TOLD}
WHERE NOT k.ok OR (SELECT count(*) FROM moved_reservations) = (SELECT count(*) FROM branches) OR tcc_overtaken()"""
    )
