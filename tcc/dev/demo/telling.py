"""Telling a story on the terminal, and keeping count of what did not come out as it was told."""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from tcc.dev.patience import wait_until

_PATIENCE_SECONDS = 30.0


class CannotGoOn(Exception):
    """A scene came to a point from which it makes no sense to go on; the message says which."""


class Telling:
    """Sentences, ticks and crosses. Colour and a spinner only where a terminal shows them."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self.checked = 0
        self.failed = 0

    def title(self, text: str) -> None:
        """The heading of a scene."""
        self._console.print(f"\n[bold cyan]{escape(text)}[/]")

    def say(self, text: str) -> None:
        """A sentence that tells what is done."""
        self._console.print(f"  {escape(text)}")

    def aside(self, text: str) -> None:
        """A line of evidence, for those who want to look."""
        self._console.print(f"      [dim]{escape(text)}[/]")

    def expect(self, sentence: str, found: object, wanted: object) -> bool:
        """A sentence that is true if `found` is `wanted`; whether it is. What is not true is told, and counted."""
        self.checked += 1
        if found == wanted:
            self._console.print(f"  [green]✓[/] {escape(sentence)}")
            return True
        self.failed += 1
        self._console.print(f"  [bold red]✗[/] [red]{escape(sentence)}[/]")
        self._console.print(f"      wanted: {escape(repr(wanted))}")
        self._console.print(f"      found:  {escape(repr(found))}")
        return False

    def fail(self, sentence: str) -> None:
        """Something that stands in the way of everything after it."""
        self.checked += 1
        self.failed += 1
        self._console.print(f"  [bold red]✗[/] [red]{escape(sentence)}[/]")

    def wait(self, for_what: str, condition: Callable[[], bool], *, within: float = _PATIENCE_SECONDS) -> None:
        """Wait until `condition` holds. Raises `CannotGoOn` when it doesn't in time."""
        with self._console.status(f"waiting for {escape(for_what)} …"):
            if not wait_until(condition, within=within, every=0.05):
                raise CannotGoOn(f"It took longer than {within:.0f} s: {for_what}.")

    def end(self) -> bool:
        """The last line; whether all came out right."""
        if self.failed:
            self._console.print(f"\n[bold red]{self.failed} of {self.checked} expectations failed.[/]")
        else:
            self._console.print(f"\n[bold green]All {self.checked} expectations came out right.[/]")
        return self.failed == 0
