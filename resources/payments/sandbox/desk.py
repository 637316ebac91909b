"""Where requests are received: which keys are at work, and who has to wait for a slow card."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from resources.payments.sandbox.behaviour import Behaviour
from resources.payments.sandbox.ledger import Answer, Ledger
from resources.payments.sandbox.wire import Call, Listing, Operation


class Desk:
    """Serves one request at a time per key.

    What is at work lives in memory only, and rightly: a crash ends it, with or without effect, and the
    ledger knows which.
    """

    def __init__(self, ledger: Ledger, methods: Mapping[str, Behaviour]) -> None:
        self._ledger = ledger
        self._methods = methods
        self._keys: set[str] = set()
        self._references: Counter[str] = Counter()

    async def serve(self, call: Call) -> Answer:
        """Answer a request; returns when its effect is on disk."""
        if call.key in self._keys:
            return await self._ledger.note_in_flight(call)
        self._keys.add(call.key)
        if call.reference:
            self._references[call.reference] += 1
        try:
            await self._dawdle(call)
            return await self._ledger.perform(call)
        finally:
            self._keys.discard(call.key)
            if call.reference:
                self._references[call.reference] -= 1
                if not self._references[call.reference]:
                    del self._references[call.reference]

    async def find(self, reference: str) -> Listing:
        """What there is under a reference. Looks at what is at work first: the other way round, a request
        that ends in between would be seen by neither."""
        in_flight = self._references[reference] > 0
        found = await self._ledger.list_of_reference(reference)
        return Listing(authorisations=found, in_flight=in_flight)

    async def _dawdle(self, call: Call) -> None:
        if call.operation is not Operation.AUTHORISE:
            return
        behaviour = self._methods.get(call.payment_method)
        if behaviour and behaviour.authorise_seconds and not await self._ledger.knows(call.key):
            await asyncio.sleep(behaviour.authorise_seconds)
