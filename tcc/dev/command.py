"""`tcc dev`: everything on this machine until Ctrl-C, with what to type next."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import click

from tcc.dev.programs import ServerError, port_is_free
from tcc.dev.seed import seed_stock
from tcc.dev.supervisor import Stack

_COLOURS = {"migrate": "yellow", "sandbox": "magenta", "api": "green", "worker": "blue", "tcc": "cyan"}
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_dev(*, port: int, data: Path) -> int:
    """Run the whole service on `port`, its data under `data`, until a signal ends it; the exit code."""
    if not port_is_free(port):
        _say(
            f"port {port} is taken: end what listens there, or choose another with  tcc dev --port {port + 1}"
        )
        return 1
    fallen: SimpleQueue[str] = SimpleQueue()
    with _signals_interrupt():
        stack = None
        try:
            stack = Stack(data, api_port=port, on_line=_print_line, on_fall=fallen.put)
            _say(f"starting {_grounds(stack)}; data is kept under {stack.data}")
            stack.start()
            added = seed_stock(stack.api_url)
            _say(f"put in sample stock: {', '.join(added)}" if added else "found the stock of an earlier run")
            click.echo(welcome(stack))
            part = fallen.get()
        except KeyboardInterrupt:
            return 0
        except ServerError as error:
            _say(str(error))
            return 1
        else:
            _say(stack.explain_fall(part))
            return 1
        finally:
            _end(stack)


def welcome(stack: Stack) -> str:
    """What a newcomer needs: addresses, a line that places an order, and what to try after it."""
    worker = Path(sys.executable).parent / "tcc-worker"
    return f"""
{click.style("tcc is up.", fg="green", bold=True)} Ctrl-C ends it; a second start finds its data.

  API        {stack.api_url}    (schema: /schema, health: /readyz, metrics: /metrics)
  gateway    {stack.sandbox_url}    (a sandbox; its own ledger: /ledger)
  database   {stack.database_url}
  redis      {stack.redis_url}

Place an order: stock, a card authorisation and the order itself, all or none:

{order_line(stack.api_url)}

Then try
  * "LAST-ONE" instead of "COFFEE-1KG", twice: the second is refused, and no card is asked
  * "payment_method":"tok_declined": everything is given back
  * "confirm":"manual", then  curl -X POST {stack.api_url}/v1/transactions/<id>/confirm  (or cancel)
  * curl {stack.api_url}/v1/inventory/items/COFFEE-1KG
  * curl {stack.api_url}/v1/transactions/<id>/log
  * TCC_DATABASE_URL={stack.database_url} {_relative(worker)} check
"""


def order_line(api_url: str) -> str:
    """A shell line that orders one bag of coffee, paid by card; a new idempotency key each time it is run."""
    return f"""curl -s {api_url}/v1/transactions -H 'Content-Type: application/json' \\
  -H "Idempotency-Key: order-$(date +%s)-$RANDOM" -d '{{"branches": [
    {{"resource":"inventory","claim":{{"lines":[{{"sku":"COFFEE-1KG","quantity":1}}]}}}},
    {{"resource":"payments","claim":{{"amount":1250,"currency":"EUR","payment_method":"tok_ok"}}}},
    {{"resource":"orders","claim":{{"customer":"ada","currency":"EUR",
      "lines":[{{"sku":"COFFEE-1KG","quantity":1,"unit_amount":1250}}]}}}}], "confirm":"auto"}}'"""


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end us as Ctrl-C does, by KeyboardInterrupt."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(stack: Stack | None) -> None:
    """Stop in order; asking again doesn't hurry it, since every step of it is bounded."""
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if stack is not None:
        _say("stopping …")
        stack.stop()
        _say("stopped")


def _grounds(stack: Stack) -> str:
    postgres = "PostgreSQL" if stack.postgres is not None else "(with the PostgreSQL of TCC_DATABASE_URL)"
    valkey = "Valkey" if stack.valkey is not None else "(with the Redis of TCC_REDIS_URL)"
    return f"{postgres}, {valkey}, the sandbox gateway, the API and a worker"


def _print_line(part: str, line: str) -> None:
    click.echo(f"{click.style(f'{part:>8} │', fg=_COLOURS.get(part))} {line}")


def _say(text: str) -> None:
    _print_line("tcc", text)


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
