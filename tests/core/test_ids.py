"""Ids: well-formed, in order of time, and never the same twice."""

from __future__ import annotations

import pickle
import time
from uuid import RFC_4122, UUID

import msgspec

from tcc.ids import new_id


def test_ids_are_uuids_of_version_7_in_order_of_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert ids == sorted(set(ids))
    assert abs((ids[-1].int >> 80) - time.time_ns() // 1_000_000) < 1000


def test_an_id_is_the_same_however_it_is_written() -> None:
    id = new_id()
    assert isinstance(id, UUID)
    assert {id} == {UUID(str(id))} == {pickle.loads(pickle.dumps(id))}
    assert msgspec.json.decode(msgspec.json.encode(id), type=UUID) == id
