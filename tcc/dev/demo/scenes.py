"""The stories. Each plays on SKUs that the ones before it may have touched, so it compares with what it found."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from tcc.dev.demo.shop import Caller, Shelf, Shop
from tcc.dev.demo.telling import Telling

COFFEE, LAST = "COFFEE-1KG", "LAST-ONE"


@dataclass(frozen=True)
class Scene:
    """A story and its heading."""

    title: str
    play: Callable[[Shop, Telling], None]


def an_order_confirms(shop: Shop, tell: Telling) -> None:
    before = shop.shelf(COFFEE)
    tell.say("Ada orders a bag of coffee: the stock, her card and the order itself, in one request.")
    order = shop.order("ada", COFFEE, "tok_ok")
    tell.expect("She is answered 201, confirmed.", (order.status, order.outcome), (201, "confirmed"))
    tell.expect("One bag is sold, and none is held.", shop.shelf(COFFEE), _sold_one(before))
    tell.expect("Her order is confirmed.", shop.order_state(order.id), "confirmed")
    _expect_effects(shop, tell, order.id, "her card was authorised once and captured once.", authorise=1, capture=1)


def an_order_is_sold_out(shop: Shop, tell: Telling) -> None:
    tell.say("There is one left. Ada buys it, and then Grace wants it as well.")
    first = shop.order("ada", LAST, "tok_ok")
    asked = shop.ledger_length()
    second = shop.order("grace", LAST, "tok_ok")
    tell.expect("Ada is answered 201, confirmed.", (first.status, first.outcome), (201, "confirmed"))
    tell.expect(
        "Grace is answered 409, transaction_refused.", (second.status, second.outcome), (409, "transaction_refused")
    )
    tell.expect("Nothing is left, nothing is held, one is sold.", shop.shelf(LAST), Shelf(0, 0, 1))
    tell.expect("The gateway's ledger has no new line: her card was never asked.", shop.ledger_length(), asked)


def an_order_is_declined(shop: Shop, tell: Telling) -> None:
    before = shop.shelf(COFFEE)
    tell.say("The bank declines the card.")
    order = shop.order("ada", COFFEE, "tok_declined")
    tell.expect("It is answered 409, transaction_refused.", (order.status, order.outcome), (409, "transaction_refused"))
    tell.expect("The payment says why: card_declined.", shop.branch(order.id, "payments")["reason"], "card_declined")
    tell.expect("The bag is back on the shelf.", shop.shelf(COFFEE), before)
    tell.expect("The order is cancelled.", shop.order_state(order.id), "cancelled")
    _expect_effects(shop, tell, order.id, "no money was held or taken.")


def an_order_is_abandoned(shop: Shop, tell: Telling) -> None:
    before = shop.shelf(COFFEE)
    tell.say("Ada has everything held for two seconds, and walks away.")
    order = shop.order("ada", COFFEE, "tok_ok", confirm="manual", ttl_seconds=2)
    tell.expect("She is answered 201, tried: nothing is final yet.", (order.status, order.outcome), (201, "tried"))
    tell.expect(
        "A bag is held for her.",
        shop.shelf(COFFEE),
        replace(before, available=before.available - 1, held=before.held + 1),
    )
    tell.wait("the worker to give it back", lambda: shop.state(order.id) == "cancelled")
    tell.expect("The worker has cancelled it: expired.", shop.transaction(order.id)["reason"], "expired")
    tell.expect("The bag is back on the shelf.", shop.shelf(COFFEE), before)
    _expect_effects(shop, tell, order.id, "her card was authorised, and let go.", authorise=1, void=1)


def a_reply_is_lost(shop: Shop, tell: Telling) -> None:
    before = shop.shelf(COFFEE)
    tell.say("The gateway does what it is asked, but its replies are lost on the way.")
    order = shop.order("ada", COFFEE, "tok_lost_reply")
    tell.say(f"It is answered {order.status}, {order.outcome}: unknown is not taken for a refusal.")
    tell.wait("the gateway to be asked again", lambda: shop.state(order.id) not in ("trying", "confirming"))
    tell.expect("The order ends confirmed.", shop.state(order.id), "confirmed")
    tell.expect("One bag is sold, and none is held.", shop.shelf(COFFEE), _sold_one(before))
    reference = shop.branch(order.id, "payments")["id"]
    asked = shop.requests(reference)
    tell.expect(
        f"The gateway was asked again: {_counted(asked)}.",
        {operation: count > 1 for operation, count in asked.items()},
        {"authorise": True, "capture": True},
    )
    _expect_effects(
        shop, tell, order.id, "one effect each, since it was the same key every time.", authorise=1, capture=1
    )


def the_api_is_killed(shop: Shop, tell: Telling) -> None:
    before = shop.shelf(COFFEE)
    tell.say("Grace's order is held, and she confirms it. The gateway takes the money, but its reply is lost.")
    order = shop.order("grace", COFFEE, "tok_lost_reply", confirm="manual")
    tell.wait("the order to be held", lambda: shop.state(order.id) == "tried")
    reference = shop.branch(order.id, "payments")["id"]
    key = str(uuid.uuid4())
    caller = Caller(shop, order.id, key)
    tell.wait("the gateway to take the money", lambda: shop.effects(reference).get("capture") == 1)
    shop.kill_api()
    caller.join()
    tell.say("At this very moment the API is killed (SIGKILL): it has never heard that the money was taken.")
    tell.expect("Grace gets no answer.", caller.answer, "a broken connection")
    shop.restart_api()
    tell.say("The API is started again, and knows nothing but what is in the database.")
    tell.wait("the worker to finish it", lambda: shop.state(order.id) != "confirming")
    tell.expect("GET /v1/transactions/{id} says confirmed.", shop.state(order.id), "confirmed")
    log = shop.log(order.id)
    for entry in log:
        if entry["event"] in ("confirm", "confirm_succeeded"):
            change = f"{entry['from']} → {entry['to']}"
            tell.aside(f"{entry['at'][11:23]}  {entry['actor']:<6}  {entry['subject']:<11}  {change}")
    moves = {(entry["subject"], entry["event"]): entry["actor"] for entry in log}
    tell.expect("Its log: the API took the decision …", moves.get(("transaction", "confirm")), "api")
    tell.expect("… and the worker finished it.", moves.get(("transaction", "confirm_succeeded")), "worker")
    tell.expect("One bag is sold, and none is held.", shop.shelf(COFFEE), _sold_one(before))
    _expect_effects(shop, tell, order.id, "the money was taken once.", authorise=1, capture=1)
    again = shop.confirm(order.id, key)
    tell.expect(
        "Grace asks again under the same key, and is answered 200, confirmed.",
        (again.status, again.body.get("state")),
        (200, "confirmed"),
    )


def the_promises_hold(shop: Shop, tell: Telling) -> None:
    tell.say("tcc-worker check looks for anything that breaks a promise, in the database and at the gateway.")
    check = shop.check()
    for line in check.promises:
        tell.aside(line)
    tell.expect(f"Of {len(check.promises)} promises, none is broken.", check.broken, [])
    tell.expect("It ends with exit code 0.", check.exit_code, 0)


SCENES = (
    Scene("An order that confirms", an_order_confirms),
    Scene("An order that is sold out", an_order_is_sold_out),
    Scene("An order that is declined", an_order_is_declined),
    Scene("An order that is abandoned", an_order_is_abandoned),
    Scene("A gateway whose replies are lost", a_reply_is_lost),
    Scene("A crash in the middle of a confirm", the_api_is_killed),
    Scene("What must always hold", the_promises_hold),
)


def _sold_one(before: Shelf) -> Shelf:
    return replace(before, available=before.available - 1, sold=before.sold + 1)


def _counted(requests: dict[str, int]) -> str:
    return ", ".join(f"{operation} {count} times" for operation, count in sorted(requests.items()))


def _expect_effects(shop: Shop, tell: Telling, transaction_id: str, sentence: str, **effects: int) -> None:
    """What the gateway's own ledger says was done to the card."""
    reference = shop.branch(transaction_id, "payments")["id"]
    tell.expect(f"The gateway's ledger: {sentence}", shop.effects(reference), effects)
