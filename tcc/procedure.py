"""A whole batch in one call: a function in the database that applies statement after statement.

A batch is a list of steps, each of a kind of command. The function applies them in their order, each statement with a
snapshot of its own, and leaves out what belongs to a group that something stands against. Statements that are sent one
by one have the database wait a dozen times a batch for this process, which has others to serve.

It is made of the statements of `tcc.sql`, and has the hash of its text in its name. `tcc migrate` adds it; those of
other versions stay, so that processes of two versions can run side by side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.db import fetch
from tcc.idempotency import Claim, key_columns
from tcc.resource import Resource
from tcc.sql import (
    ROW,
    begin_sql,
    bury_sql,
    found_sql,
    found_transactions_sql,
    held_keys_sql,
    lock_transactions_sql,
    move_sql,
    move_transaction_sql,
    try_sql,
)

BEGIN: Final = "begin"
MOVE_TRANSACTION: Final = "move transaction"
LOCK: Final = "lock transactions"
"""Takes the moves of transactions that come later."""

_encode = msgspec.json.Encoder().encode


def try_kind(resource: str) -> str:
    """The kind of a resource's Tries."""
    return f"try {resource}"


def move_kind(resource: str) -> str:
    """The kind of a resource's Moves."""
    return f"move {resource}"


class Step(msgspec.Struct, frozen=True):
    """Commands of one kind, and for each the number of the group that it belongs to."""

    kind: str
    commands: Sequence[Any]
    groups: Sequence[int]


class Statements(msgspec.Struct, frozen=True):
    """How commands of one kind are applied; how what they found is looked up, and what is missing is buried."""

    apply: str
    found: str
    bury: str = ""


def statements_of(resources: Sequence[Resource]) -> dict[str, Statements]:
    """The statements of every kind."""
    kinds = {
        BEGIN: Statements(begin_sql(), found_transactions_sql()),
        MOVE_TRANSACTION: Statements(move_transaction_sql(), found_transactions_sql()),
    }
    for resource in resources:
        name, effects, external = resource.name, resource.effects, resource.external
        kinds[try_kind(name)] = Statements(try_sql(name, effects, resource.held), found_sql(name))
        kinds[move_kind(name)] = Statements(
            move_sql(name, effects, external=external), found_sql(name), bury=bury_sql(name)
        )
    return kinds


class Procedure:
    """The function, for the resources that there are."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        body = _body(statements_of(resources))
        self.name = f"tcc_apply_{hashlib.blake2b(body.encode(), digest_size=8).hexdigest()}"
        arguments = ", ".join(f"v_{name} {type_}" for name, type_ in _ARGUMENTS.items())
        self.create = f"""CREATE OR REPLACE FUNCTION {self.name}({arguments})
RETURNS SETOF record LANGUAGE plpgsql AS $tcc${body}$tcc$"""
        given = ", ".join(f"CAST(:{name} AS {type_})" for name, type_ in _ARGUMENTS.items())
        columns = ", ".join(f"{name} {type_}" for name, type_ in ROW.items())
        self._call = text(f"SELECT * FROM {self.name}({given}) AS x({columns})")

    async def apply(
        self, connection: AsyncConnection, steps: Sequence[Step], claims: Mapping[int, Claim], *, lease_seconds: float
    ) -> list[Any]:
        """Apply steps, other than for those groups whose claim on a key, which is under the group's number, finds that
        it is held. Rows of `ROW`: those about keys, with the number of the claim from 1, say step 0, others the number
        of their step from 1."""
        rows = await fetch(
            connection,
            self._call,
            {
                "lease_seconds": lease_seconds,
                "kinds": [step.kind for step in steps],
                "batches": [_encode(step.commands).decode() for step in steps],
                "sizes": [len(step.commands) for step in steps],
                "groups": [group for step in steps for group in step.groups],
                "claimants": list(claims),
                "tokens": [claim.token for claim in claims.values()],
                **key_columns([claim.ref for claim in claims.values()]),
            },
        )
        return list(rows)


_ARGUMENTS: Final = {
    "lease_seconds": "float8",
    "kinds": "text[]",
    "batches": "text[]",
    "sizes": "int[]",
    "groups": "int[]",
    "claimants": "int[]",
    "tenants": "text[]",
    "callers": "text[]",
    "operations": "text[]",
    "keys": "text[]",
    "tokens": "uuid[]",
}

_GIVEN: Final = re.compile(r"(?<![:\w]):(\w+)")


def _inside(sql: str) -> str:
    """A statement as the function has it: what it is given are variables."""
    return _GIVEN.sub(r"v_\1", sql)


def _all_but(kept: str) -> str:
    return f"v_skip := ARRAY(SELECT n FROM generate_series(1, v_sizes[v_step]) AS n WHERE n <> ALL ({kept}));"


def _applied(kind: str, of: Statements) -> str:
    """What is done for a step of one kind."""
    buried = f"""
      IF v_missing <> '{{}}' THEN
        {_all_but("v_missing")}
        FOR v_row IN {_inside(of.bury)} LOOP
          RETURN NEXT v_row;
          v_missing := array_remove(v_missing, v_row.ord);
        END LOOP;
        IF v_missing <> '{{}}' THEN -- a Try committed after our snapshot: its row comes before what we have locked
          RAISE 'an id was tried while its cancel looked for it' USING ERRCODE = 'serialization_failure';
        END IF;
      END IF;"""
    return f"""
    WHEN '{kind}' THEN
      LOOP
        v_again := '{{}}';
        FOR v_row IN {_inside(of.apply)} LOOP
          RETURN NEXT v_row;
          CASE v_row.how
            WHEN 'again' THEN v_again := v_again || v_row.ord;
            WHEN 'known', 'found' THEN v_found := v_found || v_row.ord;
            WHEN 'missing' THEN v_missing := CASE WHEN v_row.ok THEN v_missing || v_row.ord ELSE v_missing END;
            ELSE NULL;
          END CASE;
          IF NOT v_row.ok AND v_row.how <> 'again' THEN
            v_stopped := v_stopped || v_of[v_row.ord];
          END IF;
        END LOOP;
        EXIT WHEN v_again = '{{}}';
        {_all_but("v_again")}
      END LOOP;
      IF v_found <> '{{}}' THEN
        {_all_but("v_found")}
        FOR v_row IN {_inside(of.found)} LOOP
          RETURN NEXT v_row;
        END LOOP;
      END IF;{buried if of.bury else ""}"""


def _body(kinds: Mapping[str, Statements]) -> str:
    """The function's text."""
    return f"""
#variable_conflict use_column
DECLARE
  v_step int := 0;
  v_first int := 1;
  v_commands jsonb;
  v_of int[];
  v_stopped int[] := '{{}}';
  v_skip bigint[];
  v_again bigint[];
  v_found bigint[];
  v_missing bigint[];
  v_row record;
BEGIN
  IF v_keys <> '{{}}' THEN
    FOR v_row IN {_inside(held_keys_sql())} LOOP
      RETURN NEXT v_row;
      IF NOT v_row.ok THEN
        v_stopped := v_stopped || v_claimants[v_row.ord];
      END IF;
    END LOOP;
  END IF;
  FOR v_step IN 1 .. cardinality(v_kinds) LOOP
    v_of := v_groups[v_first : v_first + v_sizes[v_step] - 1];
    v_first := v_first + v_sizes[v_step];
    v_skip := '{{}}';
    IF v_stopped <> '{{}}' THEN
      v_skip := ARRAY(SELECT n FROM generate_subscripts(v_of, 1) AS n WHERE v_of[n] = ANY (v_stopped));
      CONTINUE WHEN cardinality(v_skip) = v_sizes[v_step];
    END IF;
    v_commands := v_batches[v_step];
    v_found := '{{}}';
    v_missing := '{{}}';
    CASE v_kinds[v_step]
    WHEN '{LOCK}' THEN
      FOR v_row IN {_inside(lock_transactions_sql())} LOOP
      END LOOP;{"".join(_applied(kind, of) for kind, of in kinds.items())}
    END CASE;
  END LOOP;
END"""
