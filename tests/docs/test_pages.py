"""What every page says of commands, settings, files and other pages is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import tcc.cli
import workers.cli
from resources.registry import RESOURCES
from tcc.settings import Settings
from tests.docs.pages import DOCS, PAGES, ROOT

GROUPS = {"tcc": tcc.cli.main, "tcc-worker": workers.cli.main}
SETTINGS = {f"TCC_{name.upper()}" for name in Settings.__struct_fields__}
DATABASES = {f"TCC_{resource.name.upper()}_DATABASE_URL" for resource in (*RESOURCES,)}
OTHERS = {
    "TCC_GATEWAY_URL",
    "TCC_SEATS_DATABASE_URL",  # of the resource that new-resource.md adds
    "TCC_FAILPOINTS",
    "TCC_TEST_MODE",
}

_COMMAND = re.compile(r"(?:^|[`\s/])(tcc|tcc-worker) ([a-z]+)\b([^`\n]*)", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _code(page: Path) -> Iterator[str]:
    """What stands in backticks, and in blocks for the shell."""
    written = page.read_text()
    yield from _FENCED.findall(written)
    yield from _CODE.findall(written)


@each_page
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    for code in _code(page):
        for program, name, rest in _COMMAND.findall(code):
            assert name in GROUPS[program].commands, f"{program} {name}"
            known = {option for parameter in GROUPS[program].commands[name].params for option in parameter.opts}
            options = set(re.findall(r"--[a-z-]+", rest.partition("#")[0]))
            assert options <= known | {"--help"}, f"{program} {name}{rest}"


@pytest.mark.parametrize(
    ("program", "command"),
    [(program, command) for program, group in GROUPS.items() for command in group.commands.values()],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_command_has_help_with_an_example(program: str, command: click.Command) -> None:
    text = command.get_help(click.Context(command, info_name=command.name))
    assert re.search(rf"Examples?:\n.*{program} {command.name}", text, re.DOTALL), text


@each_page
def test_every_variable_that_is_named_is_a_setting(page: Path) -> None:
    named = set(re.findall(r"\bTCC_[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= SETTINGS | DATABASES | OTHERS


@each_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    paths = {
        code
        for code in _CODE.findall(page.read_text())
        if re.fullmatch(r"(tcc|resources|workers|tests|docs|bench)/[\w./-]+", code) and "seats" not in code
    }
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in readme] == []


@each_page
def test_no_page_knows_the_machine_it_was_written_on(page: Path) -> None:
    assert not re.search(r"/(?:root|home|work)/|\.local\b", page.read_text())


def test_every_target_of_the_makefile_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = {name for code in _code(page) for name in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)}
        assert named <= targets, page.name
