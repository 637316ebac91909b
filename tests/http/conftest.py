"""What the tests of the HTTP contract share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tcc.service import Service
from tests.client import Api, serving

pytest.register_assert_rewrite("tests.http.refusals", "tests.http.records")


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable[[Service], Awaitable[Api]]]:
    """Put an API before a service that the test has opened itself."""
    async with AsyncExitStack() as stack:

        async def put(service: Service) -> Api:
            return await stack.enter_async_context(serving(service))

        yield put
