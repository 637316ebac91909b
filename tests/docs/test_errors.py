"""docs/errors.md against the codes that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from resources.registry import RESOURCES
from tcc.errors import CODES, Kind
from tcc.http.problems import Problems
from tests.client import Api
from tests.docs.pages import DOCS, ROOT, blocks, table

PAGE = DOCS / "errors.md"
REFUSALS = {code: kind for resource in RESOURCES for code, kind in resource.refusals.items()}


@pytest.mark.parametrize(("heading", "kinds"), [("Code", CODES), ("Refusal", REFUSALS)])
def test_every_code_is_listed_with_its_title_status_and_whether_to_ask_again(
    heading: str, kinds: Mapping[str, Kind]
) -> None:
    statuses = Problems(RESOURCES).statuses
    expected = [
        (code, kind.title, str(statuses[code]), "yes" if kind.retryable else "no") for code, kind in kinds.items()
    ]
    rows = table(PAGE, heading)
    assert [row[:4] for row in rows] == expected
    assert all(advice.endswith(".") for *_, advice in rows)


async def test_the_example_is_what_is_answered(api: Api) -> None:
    (example,) = map(msgspec.json.decode, blocks(PAGE, "json"))
    await api.stock("LAST-ONE", 0)
    answer = await api.hold("LAST-ONE")
    assert answer.json | {"correlation_id": example["correlation_id"]} == example


def test_every_code_of_a_field_is_listed() -> None:
    sources = [
        *(ROOT / "tcc").rglob("*.py"),
        *(path for path in (ROOT / "resources").rglob("*.py") if "sandbox" not in path.parts),
    ]
    used = {code for path in sources for code in _field_codes(ast.parse(path.read_text()))}
    # What msgspec finds gets its code from its message (`tcc.http.requests.invalid`).
    used |= {"invalid_value", "missing_field", "unknown_field"}
    listed = {row[0] for row in table(PAGE, "Field code")}
    assert listed == used - CODES.keys() - REFUSALS.keys()


def _field_codes(tree: ast.AST) -> Iterator[str]:
    """The codes that are written out in what makes field errors."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="FieldError" | "invalid_field"), args=[_, ast.Constant(value=str(code)), *_]
            ):
                yield code
            case _:
                pass
