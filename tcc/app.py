"""The API's composition root: an ASGI application from environment variables, for uvicorn's factory mode."""

from __future__ import annotations

import gc
import os
from importlib.metadata import version
from typing import Any

from resources.registry import RESOURCES
from tcc.http.app import create_app
from tcc.http.draining import Draining
from tcc.logs import configure_logs
from tcc.service import open_service
from tcc.settings import Settings


def create() -> Any:
    """The API. Raises `SettingsError` where the environment makes no sense."""
    environment = dict(os.environ)
    settings = Settings.from_environment(environment)
    configure_logs(settings.log_format, settings.log_level)
    # What is imported stays: collections needn't look through it again and again (it was a fifth of the CPU of a Try).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    return create_app(
        lambda: open_service(settings, RESOURCES, environment, application="tcc-api"),
        version=version("tcc"),
        max_body_bytes=settings.max_body_bytes,
        draining=Draining(settings.drain_seconds),
    )
