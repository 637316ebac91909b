"""The sandbox gateway as a process of its own: what each payment method does, and what a crash leaves."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import pytest_asyncio

from resources.payments.gateways.contract import GatewayUnreachableError, Outcome, Reply, Standing
from resources.payments.gateways.sandbox import SandboxGateway
from tests.gateways.process import SandboxProcess

AMOUNT = 4_200
Connect = Callable[..., SandboxGateway]


@pytest.fixture
def gateway(shared_sandbox: SandboxProcess, connect: Connect) -> SandboxGateway:
    return connect(shared_sandbox.url)


@pytest_asyncio.fixture
async def http(shared_sandbox: SandboxProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(shared_sandbox.url) as session:
        yield session


async def authorise(gateway: SandboxGateway, reference: str, method: str, key: str | None = None) -> Reply:
    return await gateway.authorise(
        reference=reference,
        amount=AMOUNT,
        currency="EUR",
        payment_method=method,
        key=key or f"{reference}/authorise",
    )


async def authorised(gateway: SandboxGateway, reference: str, method: str) -> str:
    """Authorise as a caller should: with the same key until there is an answer."""
    for _ in range(10):
        reply = await authorise(gateway, reference, method)
        if reply.outcome is Outcome.SUCCEEDED and reply.authorisation_id is not None:
            return reply.authorisation_id
        await asyncio.sleep(reply.retry_after_seconds or 0)
    pytest.fail("it was never authorised")


async def capture(gateway: SandboxGateway, reference: str, id_: str) -> Reply:
    return await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture")


async def test_a_declined_card_has_no_effect(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    reply = await authorise(gateway, reference, "tok_declined")

    assert (reply.outcome, reply.status, reply.code) == (Outcome.DECLINED, 402, "card_declined")
    account = shared_sandbox.account(reference)
    assert account["authorisation"]["state"] == "declined"
    assert account["effects"]["authorise"] == 0


async def test_an_unknown_payment_method_is_unprocessable(gateway: SandboxGateway, reference: str) -> None:
    reply = await authorise(gateway, reference, "tok_nonsense")

    assert (reply.status, reply.code, reply.permanent) == (422, "unknown_payment_method", True)


async def test_a_slow_card_is_pending_to_whoever_looks_and_then_succeeds(
    gateway: SandboxGateway, reference: str
) -> None:
    asked = asyncio.create_task(authorise(gateway, reference, "tok_slow"))
    standings = []
    while not asked.done():
        standings.append((await gateway.find(reference=reference)).standing)
    reply = await asked

    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.duration_seconds >= 0.6
    assert Standing.PENDING in standings
    assert Standing.AUTHORISED not in standings[:-1]
    again = await authorise(gateway, reference, "tok_slow")
    assert again.duration_seconds < 0.6


async def test_a_key_in_flight_is_unknown_with_a_time_to_ask_again(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    first = asyncio.create_task(authorise(gateway, reference, "tok_slow"))
    while (await gateway.find(reference=reference)).standing is not Standing.PENDING:
        assert not first.done()
    second = await authorise(gateway, reference, "tok_slow")

    assert (second.outcome, second.status, second.code) == (Outcome.UNKNOWN, 409, "request_in_flight")
    assert second.retry_after_seconds == 1.0
    assert (await first).outcome is Outcome.SUCCEEDED
    account = shared_sandbox.account(reference)
    assert (account["effects"]["authorise"], account["requests"]["authorise"]) == (1, 2)


async def test_work_that_outlasts_the_client_is_done_all_the_same(
    shared_sandbox: SandboxProcess, connect: Connect, reference: str
) -> None:
    hasty = connect(shared_sandbox.url, timeout_seconds=0.15)
    reply = await authorise(hasty, reference, "tok_slow")
    assert (reply.outcome, reply.code) == (Outcome.UNKNOWN, "gateway_timeout")

    id_ = await authorised(connect(shared_sandbox.url), reference, "tok_slow")
    account = shared_sandbox.account(reference)
    assert account["authorisation"]["id"] == id_
    assert account["effects"]["authorise"] == 1


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [("tok_lost_reply", None, "gateway_unreachable"), ("tok_500_after_success", 500, "internal_error")],
)
async def test_the_first_reply_of_every_operation_is_lost_and_a_repeat_gets_it(
    *,
    gateway: SandboxGateway,
    shared_sandbox: SandboxProcess,
    reference: str,
    method: str,
    status: int | None,
    code: str,
) -> None:
    lost = [await authorise(gateway, reference, method)]
    heard = [await authorise(gateway, reference, method)]
    id_ = heard[0].authorisation_id
    assert id_ is not None
    for replies in (lost, heard):
        replies.append(await capture(gateway, reference, id_))
    for replies in (lost, heard):
        replies.append(await gateway.refund(authorisation_id=id_, amount=1, key=f"{reference}/refund"))

    assert [(reply.outcome, reply.status, reply.code) for reply in lost] == [(Outcome.UNKNOWN, status, code)] * 3
    assert [reply.outcome for reply in heard] == [Outcome.SUCCEEDED] * 3
    account = shared_sandbox.account(reference)
    assert account["effects"] == {"authorise": 1, "capture": 1, "void": 0, "refund": 1}
    assert account["requests"] == {"authorise": 2, "capture": 2, "void": 0, "refund": 2}


async def test_a_void_whose_reply_is_lost_has_let_go(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    id_ = await authorised(gateway, reference, "tok_lost_reply")
    lost = await gateway.void(authorisation_id=id_, key=f"{reference}/void")
    again = await gateway.void(authorisation_id=id_, key=f"{reference}/void")

    assert (lost.outcome, again.outcome) == (Outcome.UNKNOWN, Outcome.SUCCEEDED)
    assert shared_sandbox.account(reference)["effects"]["void"] == 1


async def test_a_lost_reply_can_be_found_by_reference(gateway: SandboxGateway, reference: str) -> None:
    await authorise(gateway, reference, "tok_lost_reply")

    assert (await gateway.find(reference=reference)).standing is Standing.AUTHORISED


async def test_a_client_that_waits_for_a_lost_reply_times_out(
    tmp_path_factory: pytest.TempPathFactory, connect: Connect, reference: str
) -> None:
    patient = SandboxProcess(tmp_path_factory.mktemp("patient"), "--held-reply-seconds=60")
    patient.start()
    try:
        reply = await authorise(connect(patient.url, timeout_seconds=0.3), reference, "tok_lost_reply")
        assert (reply.outcome, reply.code) == (Outcome.UNKNOWN, "gateway_timeout")
        assert patient.account(reference)["effects"]["authorise"] == 1
    finally:
        assert await asyncio.to_thread(patient.stop) in (0, -15)


async def test_a_capture_that_fails_twice_works_the_third_time(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    id_ = await authorised(gateway, reference, "tok_capture_fails_twice")
    replies = [await capture(gateway, reference, id_) for _ in range(3)]

    assert [(reply.outcome, reply.status) for reply in replies] == [
        (Outcome.UNKNOWN, 503),
        (Outcome.UNKNOWN, 503),
        (Outcome.SUCCEEDED, 200),
    ]
    account = shared_sandbox.account(reference)
    assert (account["effects"]["capture"], account["requests"]["capture"]) == (1, 3)


async def test_a_capture_refused_for_good_leaves_the_hold(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    id_ = await authorised(gateway, reference, "tok_capture_refused")
    reply = await capture(gateway, reference, id_)

    assert (reply.outcome, reply.status, reply.code) == (Outcome.DECLINED, 402, "capture_refused")
    assert reply.permanent
    assert shared_sandbox.account(reference)["authorisation"]["state"] == "authorised"


async def test_a_short_lived_authorisation_can_be_captured_in_time_only(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    late = await authorise(gateway, f"{reference}-late", "tok_auth_expires")
    assert late.authorisation_id is not None
    assert late.capture_before is not None
    assert late.capture_before - datetime.now(UTC) <= timedelta(seconds=0.3)
    in_time = await authorised(gateway, reference, "tok_auth_expires")
    assert (await capture(gateway, reference, in_time)).outcome is Outcome.SUCCEEDED

    left = late.capture_before - datetime.now(UTC)
    await asyncio.sleep(max(left.total_seconds(), 0) + 0.01)
    reply = await capture(gateway, f"{reference}-late", late.authorisation_id)
    assert (reply.outcome, reply.code, reply.permanent) == (Outcome.DECLINED, "authorisation_expired", True)
    assert shared_sandbox.account(f"{reference}-late")["effects"]["capture"] == 0


async def test_fifty_identical_requests_at_once_have_one_effect(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    replies = await asyncio.gather(*(authorise(gateway, reference, "tok_ok") for _ in range(50)))

    outcomes = Counter((reply.outcome, reply.code) for reply in replies)
    assert outcomes[Outcome.SUCCEEDED, None] >= 1
    assert set(outcomes) <= {(Outcome.SUCCEEDED, None), (Outcome.UNKNOWN, "request_in_flight")}
    assert len({reply.authorisation_id for reply in replies if reply.outcome is Outcome.SUCCEEDED}) == 1
    account = shared_sandbox.account(reference)
    assert (account["effects"]["authorise"], account["requests"]["authorise"]) == (1, 50)


async def test_fifty_captures_with_as_many_keys_take_the_money_once(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    id_ = await authorised(gateway, reference, "tok_ok")
    await asyncio.gather(
        *(gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/{number}") for number in range(50))
    )

    account = shared_sandbox.account(reference)
    assert (account["effects"]["capture"], account["requests"]["capture"]) == (1, 50)


async def test_a_replay_is_the_first_reply_byte_for_byte(http: aiohttp.ClientSession, reference: str) -> None:
    body = {"reference": reference, "amount": 1, "currency": "EUR", "payment_method": "tok_declined"}
    answers = []
    for _ in range(2):
        async with http.post("/authorisations", json=body, headers={"Idempotency-Key": reference}) as answer:
            replayed = answer.headers.get("Idempotency-Replayed")
            answers.append((answer.status, await answer.read(), replayed))

    (first_status, first_body, first_replayed), (status, again, replayed) = answers
    assert (first_status, first_body) == (status, again)
    assert (first_replayed, replayed) == (None, "true")


async def test_a_key_reused_for_another_request_is_a_conflict_and_both_are_in_the_ledger(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    await authorise(gateway, reference, "tok_ok")
    reply = await authorise(gateway, reference, "tok_declined")

    assert (reply.status, reply.code) == (409, "idempotency_key_reused")
    results = [line["result"] for line in shared_sandbox.ledger(reference=reference)["operations"]]
    assert results == ["succeeded", "key_reused"]


GOOD = '{"reference":"%s","amount":1,"currency":"EUR","payment_method":"tok_ok"}'


@pytest.mark.parametrize(
    ("key", "body", "status", "code"),
    [
        (None, GOOD, 400, "idempotency_key_missing"),
        ("k" * 256, GOOD, 400, "idempotency_key_too_long"),
        ("key", "", 422, "invalid_request"),
        ("key", "{", 422, "invalid_request"),
        ("key", "[" * 5_000, 422, "invalid_request"),
        ("key", GOOD.replace("1", "1.5"), 422, "invalid_request"),
        ("key", GOOD.replace("1", "-1"), 422, "invalid_request"),
        ("key", GOOD.replace("1", "9" * 30), 422, "invalid_request"),
        ("key", GOOD.replace("EUR", "euro"), 422, "invalid_request"),
        ("key", GOOD.replace("amount", "amounts"), 422, "invalid_request"),
        ("key", "x" * 100_000, 413, "invalid_request"),
    ],
)
async def test_a_bad_request_is_refused_and_leaves_nothing(
    *,
    http: aiohttp.ClientSession,
    shared_sandbox: SandboxProcess,
    reference: str,
    key: str | None,
    body: str,
    status: int,
    code: str,
) -> None:
    text = body.replace("%s", reference)
    headers = {"Idempotency-Key": key} if key else {}
    async with http.post("/authorisations", data=text, headers=headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (status, code)
    assert shared_sandbox.ledger(reference=reference)["operations"] == []


@pytest.mark.parametrize(
    "query", ["", "?changed_since=2026-01-01T00:00:00", "?changed_since=soon", "?reference=r&limit=0"]
)
async def test_a_listing_of_nothing_in_particular_is_refused(http: aiohttp.ClientSession, query: str) -> None:
    async with http.get(f"/authorisations{query}") as answer:
        assert (answer.status, (await answer.json())["code"]) == (400, "invalid_request")


async def test_the_ledger_is_read_page_by_page(
    gateway: SandboxGateway, shared_sandbox: SandboxProcess, reference: str
) -> None:
    id_ = await authorised(gateway, reference, "tok_ok")
    await capture(gateway, reference, id_)
    await capture(gateway, reference, id_)

    first = shared_sandbox.ledger(reference=reference, limit=2)
    rest = shared_sandbox.ledger(reference=reference, limit=2, after=first["next"])
    lines = first["operations"] + rest["operations"]
    assert [(line["operation"], line["result"], line["had_effect"]) for line in lines] == [
        ("authorise", "succeeded", True),
        ("capture", "succeeded", True),
        ("capture", "replayed", False),
    ]
    assert rest["next"] is None
    assert first["accounts"] == rest["accounts"]


async def test_an_unreachable_gateway_is_unknown_whatever_is_asked(connect: Connect, reference: str) -> None:
    nobody = connect("http://127.0.0.1:1")

    reply = await authorise(nobody, reference, "tok_ok")
    assert (reply.outcome, reply.code, reply.status) == (Outcome.UNKNOWN, "gateway_unreachable", None)
    found = await nobody.find(reference=reference)
    assert (found.standing, found.code) == (Standing.UNKNOWN, "gateway_unreachable")
    with pytest.raises(GatewayUnreachableError, match="gateway_unreachable"):
        await nobody.list_changed(since=datetime.now(UTC))


async def test_a_killed_sandbox_remembers_its_ledger_its_keys_and_its_counters(
    mortal_sandbox: SandboxProcess, connect: Connect, reference: str
) -> None:
    gateway = connect(mortal_sandbox.url)
    held = await authorised(gateway, reference, "tok_ok")
    flaky = await authorised(gateway, f"{reference}-flaky", "tok_capture_fails_twice")
    assert (await capture(gateway, f"{reference}-flaky", flaky)).status == 503
    lost = await authorise(gateway, f"{reference}-lost", "tok_lost_reply")
    assert lost.outcome is Outcome.UNKNOWN
    before = mortal_sandbox.ledger()

    mortal_sandbox.kill()
    assert (await authorise(gateway, reference, "tok_ok")).outcome is Outcome.UNKNOWN
    mortal_sandbox.start()

    assert mortal_sandbox.ledger() == before
    assert (await authorise(gateway, reference, "tok_ok")).authorisation_id == held
    assert (await authorise(gateway, f"{reference}-lost", "tok_lost_reply")).outcome is Outcome.SUCCEEDED
    captures = [await capture(gateway, f"{reference}-flaky", flaky) for _ in range(2)]
    assert [reply.status for reply in captures] == [503, 200]
    for name in (reference, f"{reference}-lost"):
        account = mortal_sandbox.account(name)
        assert (account["effects"]["authorise"], account["requests"]["authorise"]) == (1, 2)


async def test_nothing_that_was_answered_is_lost_when_it_is_killed_under_load(
    mortal_sandbox: SandboxProcess, connect: Connect, reference: str
) -> None:
    gateway = connect(mortal_sandbox.url)
    answered: set[str] = set()
    enough = asyncio.Event()

    async def shop(shopper: int) -> None:
        for number in range(10_000):
            name = f"{reference}-{shopper}-{number}"
            if (await authorise(gateway, name, "tok_ok")).outcome is not Outcome.SUCCEEDED:
                return
            answered.add(name)
            if len(answered) >= 200:
                enough.set()

    async with asyncio.TaskGroup() as group:
        for shopper in range(16):
            group.create_task(shop(shopper))
        await enough.wait()
        await asyncio.to_thread(mortal_sandbox.kill)
    mortal_sandbox.start()

    kept: set[str] = set()
    after: int | None = 0
    while after is not None:
        page = mortal_sandbox.ledger(after=after)
        kept |= {account["authorisation"]["reference"] for account in page["accounts"]}
        assert all(account["effects"]["authorise"] == 1 for account in page["accounts"])
        after = page["next"]
    assert answered <= kept
    assert len(kept - answered) <= 16


def test_a_second_sandbox_on_the_same_port_or_directory_says_what_to_do(
    mortal_sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = mortal_sandbox.command()
    elsewhere = [
        f"--data={tmp_path_factory.mktemp('other')}" if part.startswith("--data=") else part for part in command
    ]
    other_port = ["--port=0" if part.startswith("--port=") else part for part in command]

    for arguments, sentence in [
        (elsewhere, "choose another port"),
        (other_port, "stop it, or choose another directory"),
    ]:
        second = subprocess.run(
            arguments, cwd=mortal_sandbox.root, capture_output=True, text=True, timeout=30, check=False
        )
        assert second.returncode == 1
        assert sentence in second.stderr
        assert second.stderr.count("\n") == 1


def test_a_sandbox_that_is_asked_to_stop_stops_cleanly(mortal_sandbox: SandboxProcess) -> None:
    assert mortal_sandbox.stop() in (0, -15)
    mortal_sandbox.start()
