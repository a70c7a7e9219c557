"""A process whose Redis calls are traced by the instrumentation that projects use. Says which spans there were while a
client that follows a topic, and owns a key of it, did nothing; and then, of what was asked for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import django
from opentelemetry import trace
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")
django.setup()

from ephemeral_state import api  # noqa: E402
from ephemeral_state.consumers import EphemeralStateConsumer  # noqa: E402
from ephemeral_state.policy import Policy  # noqa: E402
from tests.live.peer import Peer  # noqa: E402

exporter = InMemorySpanExporter()


class Everything(Policy):
    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


async def until(span: str) -> None:
    async with asyncio.timeout(30):
        while all(each.name != span for each in exporter.get_finished_spans()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def children(of: str) -> list[str]:
    spans = exporter.get_finished_spans()
    parents = {span.context.span_id for span in spans if span.name == of}
    return sorted({span.name for span in spans if span.parent is not None and span.parent.span_id in parents})


async def main(idle_seconds: float) -> dict[str, Any]:
    import redis.asyncio
    from django.conf import settings

    async with Peer(EphemeralStateConsumer.as_asgi()) as peer:
        for verb in ("subscribe", "set"):
            fields = {"topic": "room", "ref": verb} | ({"key": "k", "ttl_ms": None} if verb == "set" else {})
            peer.arrive("websocket.receive", text=json.dumps({"_orama": f"ephemeral.{verb}", **fields}))
            while (await peer.frame()).get("ref") != verb:
                pass
        await asyncio.sleep(2)  # what the connection itself caused has been reported
        exporter.clear()
        await asyncio.sleep(idle_seconds)
        idle = [span.name for span in exporter.get_finished_spans()]
        exporter.clear()
        await api.aset("room", "asked for", ttl=60)
        asked = children("ephemeral_state.set")
        client = redis.asyncio.Redis.from_url(settings.EPHEMERAL_STATE["OPTIONS"]["url"])
        await client.execute_command("FLUSHALL")
        await client.aclose()
        await until("ephemeral_state.write_back")
        return {"idle": idle, "set": asked, "write_back": children("ephemeral_state.write_back")}


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    RedisInstrumentor().instrument()
    print(json.dumps(asyncio.run(main(float(sys.argv[1])))))
