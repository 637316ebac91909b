"""`tcc dev`: everything on this machine until Ctrl-C, with what to type next."""

import sys
from pathlib import Path
from queue import SimpleQueue

import click

from tcc.dev.endings import ignore_signals, signals_interrupt
from tcc.dev.programs import ServerError, port_is_free
from tcc.dev.seed import seed_stock
from tcc.dev.supervisor import Stack

_COLOURS = {"migrate": "yellow", "sandbox": "magenta", "api": "green", "worker": "blue", "tcc": "cyan"}


def run_dev(*, port: int, data: Path) -> int:
    """Run the whole service on `port`, its data under `data`, until a signal ends it; the exit code."""
    if not port_is_free(port):
        _say(f"port {port} is taken: end what listens there, or choose another with  tcc dev --port {port + 1}")
        return 1
    fallen: SimpleQueue[str] = SimpleQueue()
    with signals_interrupt():
        stack = None
        try:
            stack = Stack(data, api_port=port, on_line=_print_line, on_fall=fallen.put)
            _say(f"starting {_parts(stack)}; data is kept under {stack.data}")
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
    return f"""
{click.style("tcc is up.", fg="green", bold=True)} Ctrl-C ends it; a second start finds its data.

  API        {stack.api_url}    (schema: /schema, health: /readyz, metrics: /metrics)
  gateway    {stack.sandbox_url}    (a sandbox; its own ledger: /ledger)
  database   {_database(stack)}
  redis      {_redis(stack)}

Place an order: stock, a card authorisation and the order itself, all or none:

{order_line(stack.api_url)}

Then try
  * "LAST-ONE" instead of "COFFEE-1KG", twice: the second is refused, and no card is asked
  * "payment_method":"tok_declined": everything is given back
  * "confirm":"manual", then  curl -X POST {stack.api_url}/v1/transactions/<id>/confirm  (or cancel)
  * curl {stack.api_url}/v1/inventory/items/COFFEE-1KG
  * curl {stack.api_url}/v1/transactions/<id>/log
  * {check_line(stack)}
"""


def order_line(api_url: str) -> str:
    """A shell line that orders one bag of coffee, paid by card; a new idempotency key each time it is run."""
    return f"""curl -s {api_url}/v1/transactions -H 'Content-Type: application/json' \\
  -H "Idempotency-Key: order-$(date +%s)-$RANDOM" -d '{{"branches": [
    {{"resource":"inventory","claim":{{"lines":[{{"sku":"COFFEE-1KG","quantity":1}}]}}}},
    {{"resource":"payments","claim":{{"amount":1250,"currency":"EUR","payment_method":"tok_ok"}}}},
    {{"resource":"orders","claim":{{"customer":"ada","currency":"EUR",
      "lines":[{{"sku":"COFFEE-1KG","quantity":1,"unit_amount":1250}}]}}}}], "confirm":"auto"}}'"""


def check_line(stack: Stack) -> str:
    """A shell line that verifies what must always hold; what the shell's own environment says is not repeated."""
    worker = _relative(Path(sys.executable).parent / "tcc-worker")
    database = "" if stack.postgres is None else f"TCC_DATABASE_URL={_database(stack)} "
    return f"{database}TCC_GATEWAY_URL={stack.sandbox_url} {worker} check"


def _database(stack: Stack) -> str:
    """Where the database is, as psql and every other tool writes it; whoever gave us a URL knows it."""
    return "that of TCC_DATABASE_URL" if stack.postgres is None else stack.database_url.replace("+asyncpg", "")


def _redis(stack: Stack) -> str:
    return "that of TCC_REDIS_URL" if stack.valkey is None else stack.redis_url


def _end(stack: Stack | None) -> None:
    ignore_signals()
    if stack is not None:
        _say("stopping …")
        stack.stop()
        _say("stopped")


def _parts(stack: Stack) -> str:
    """What we start, and on what it stands that was there before."""
    ours = ["PostgreSQL"] * (stack.postgres is not None) + ["Valkey"] * (stack.valkey is not None)
    given = ["TCC_DATABASE_URL"] * (stack.postgres is None) + ["TCC_REDIS_URL"] * (stack.valkey is None)
    started = f"{', '.join([*ours, 'the sandbox gateway', 'the API'])} and a worker"
    return f"{started}, on {' and '.join(given)}" if given else started


def _print_line(part: str, line: str) -> None:
    click.echo(f"{click.style(f'{part:>8} │', fg=_COLOURS.get(part))} {line}")


def _say(text: str) -> None:
    _print_line("tcc", text)


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
