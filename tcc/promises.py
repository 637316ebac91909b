"""What is to become of idempotency keys, said before the batch that their requests are in.

A reply tells what came of a request, and is stored in the commit that it tells of. Where that is as good as known, but
for the time, it is written before: then the whole batch is one call (`tcc.procedure`), and the function puts the time
in. If anything comes out otherwise, nothing is done at all, and the batch is applied step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from tcc.commands import MOMENT
from tcc.idempotency import Claim, KeyRef, Reply, key_columns
from tcc.sql import row_of


class Promise(msgspec.Struct, frozen=True):
    """What is to become of a key if its group comes out as foreseen: it is taken, where there is a `claim`, and given
    a reply, where there is one.

    In the reply, `MOMENT` stands for the time of the batch's step with the number `step`, and what is `ttl_seconds`
    later for what is as much later than that.
    """

    ref: KeyRef
    claim: Claim | None
    group: int
    reply: Reply | None = None
    step: int = 0
    ttl_seconds: float = 0.0


COLUMNS: Final = {
    "tenants": "text[]",
    "callers": "text[]",
    "operations": "text[]",
    "keys": "text[]",
    "tokens": "uuid[]",
    "fingerprints": "bytea[]",
    "subjects": "uuid[]",
    "claimants": "int[]",
    "statuses": "int[]",
    "bodies": "text[]",
    "locations": "text[]",
    "steps": "int[]",
    "laters": "text[]",
    "ttls": "float8[]",
}


def columns_of(promises: Sequence[Promise]) -> dict[str, Any]:
    """Promises as arrays, one for each of `COLUMNS`."""
    claims = [promise.claim for promise in promises]
    replies = [promise.reply for promise in promises]
    return key_columns([promise.ref for promise in promises]) | {
        "tokens": [claim and claim.token for claim in claims],
        "fingerprints": [claim and claim.fingerprint for claim in claims],
        "subjects": [claim and claim.subject_id for claim in claims],
        "claimants": [promise.group for promise in promises],
        "statuses": [reply and reply.status for reply in replies],
        "bodies": [reply and reply.body.decode() for reply in replies],
        "locations": [reply and reply.location for reply in replies],
        "steps": [promise.step for promise in promises],
        "laters": [_written(promise.ttl_seconds) for promise in promises],
        "ttls": [promise.ttl_seconds for promise in promises],
    }


def _written(seconds: float) -> str:
    """How a reply has the time so many seconds after `MOMENT`."""
    return msgspec.json.encode(MOMENT + timedelta(seconds=seconds)).decode().strip('"')


MARK: Final = _written(0)
"""How a reply has `MOMENT`."""

_KEYS: Final = """unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]),
    CAST(:keys AS text[]), CAST(:tokens AS uuid[])"""


def held_sql() -> str:
    """Those keys to be taken that have a row. `ok`: it is this very request's, and has no reply yet."""
    return f"""
SELECT {row_of(ord="c.ord", how="'held'", ok="k.status IS NULL AND k.token = c.token")}
FROM {_KEYS}) WITH ORDINALITY AS c(tenant_id, caller, operation, key, token, ord)
JOIN idempotency_keys k USING (tenant_id, caller, operation, key)
WHERE c.token IS NOT NULL"""


def keep_sql() -> str:
    """Promises kept, with the times of the steps in `nows`: the bodies. Not `ok`: the key had a reply already."""

    def written(time: str) -> str:
        utc = f"""to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        return f"replace({utc}, '.000000Z', 'Z')"

    now = "(CAST(:nows AS timestamptz[]))[c.step]"
    later = f"({now} + make_interval(secs => c.ttl))"
    taken = "p.token IS NOT NULL OR p.ord IN (SELECT s.ord FROM stored s)"
    return f"""
WITH promised AS MATERIALIZED (
  SELECT c.*, convert_to(CASE WHEN {now} IS NULL THEN c.said
    ELSE replace(replace(c.said, c.later, {written(later)}), :mark, {written(now)}) END, 'UTF8') AS body
  FROM {_KEYS}, CAST(:fingerprints AS bytea[]), CAST(:subjects AS uuid[]), CAST(:statuses AS int[]),
    CAST(:bodies AS text[]), CAST(:locations AS text[]), CAST(:steps AS int[]), CAST(:laters AS text[]),
    CAST(:ttls AS float8[])) WITH ORDINALITY
    AS c(tenant_id, caller, operation, key, token, fingerprint, subject_id, status, said, location, step, later, ttl,
      ord)
), taken AS (
  INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, token, status, body,
    location, created_at)
  SELECT p.tenant_id, p.caller, p.operation, p.key, p.fingerprint, p.subject_id, p.token, p.status, p.body, p.location,
    clock_timestamp()
  FROM promised p WHERE p.token IS NOT NULL ORDER BY p.tenant_id, p.caller, p.operation, p.key
), stored AS (
  UPDATE idempotency_keys k SET status = p.status, body = p.body, location = p.location
  FROM promised p
  WHERE p.token IS NULL AND k.tenant_id = p.tenant_id AND k.caller = p.caller AND k.operation = p.operation
    AND k.key = p.key AND k.status IS NULL
  RETURNING p.ord)
SELECT {row_of(ord="p.ord", how="'kept'", ok=taken, body="p.body")}
FROM promised p"""
