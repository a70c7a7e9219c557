"""The ready-made consumer, for everybody."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_given = json.loads(os.environ["BENCHMARK"])
if not _given["opentelemetry"]:
    sys.modules["opentelemetry"] = None  # type: ignore[assignment] # cannot be imported from now on

import django  # noqa: E402

django.setup()

if _given["metrics_port"]:
    from opentelemetry import metrics
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import start_http_server

    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    start_http_server(_given["metrics_port"], addr="127.0.0.1")

from ephemeral_state.consumers import EphemeralStateConsumer  # noqa: E402
from ephemeral_state.policy import Policy  # noqa: E402


class AllowAll(Policy):
    """All but a client that means harm: it says so in its path, and may read the others' room, or nothing at all."""

    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return scope["path"] != "/denied"

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return scope["path"] in ("/", "/ws/state/") or (scope["path"] == "/hostile" and topic.startswith("hostile"))


application = EphemeralStateConsumer.as_asgi()
