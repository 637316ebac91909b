"""docs/operations.md against the settings, the metrics and the commands that there are."""

from __future__ import annotations

import msgspec
from prometheus_client.metrics import MetricWrapperBase

from resources.registry import RESOURCES
from tcc.metrics import Metrics
from tcc.settings import Settings
from tests.docs.pages import DOCS, table
from workers.cli import main as worker

PAGE = DOCS / "operations.md"


def _written(default: object) -> str:
    match default:
        case msgspec.NODEFAULT:
            return "required"
        case bool():
            return str(default).lower()
        case float() | int():
            return f"{default:.12g}"
        case _:
            return str(default)


def test_every_setting_is_listed_with_its_default() -> None:
    expected = [(f"TCC_{field.name.upper()}", _written(field.default)) for field in msgspec.structs.fields(Settings)]
    assert [row[:2] for row in table(PAGE, "Variable")] == expected


def test_every_resource_has_its_database() -> None:
    listed = {row[0] for row in table(PAGE, "Resource's variable")}
    assert listed == {f"TCC_{resource.name.upper()}_DATABASE_URL" for resource in RESOURCES} | {"TCC_GATEWAY_URL"}


def test_every_metric_is_listed_with_its_type_and_labels() -> None:
    metrics = [metric for metric in vars(Metrics()).values() if isinstance(metric, MetricWrapperBase)]
    expected = {
        (
            f"{metric._name}_total" if metric._type == "counter" else metric._name,
            metric._type,
            ", ".join(metric._labelnames),
            metric._documentation,
        )
        for metric in metrics
    }
    assert {tuple(cell.strip() for cell in row) for row in table(PAGE, "Metric")} == expected


def test_every_command_of_the_worker_is_listed() -> None:
    assert [row[0].split()[1] for row in table(PAGE, "Command")] == list(worker.commands)
