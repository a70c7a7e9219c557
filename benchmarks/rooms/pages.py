"""Pages that are left in every way, for `benchmarks pages` and the browser tests: `/page?kind=…&way=…&topic=…` sets a
key in the topic, and then leaves by itself, so that nothing has to steer the browser.

The clients of the docs are taken from the docs, so that what is measured is what people copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import django

django.setup()

from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from ephemeral_state import api  # noqa: E402
from ephemeral_state.consumers import (  # noqa: E402
    UNTIL_DISCONNECT,
    EphemeralStateConsumer,
    EphemeralStateMixin,
)

__all__ = ["KINDS", "WAYS", "application"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_CLIENT: Final = _ROOT / "ephemeral_state" / "static" / "ephemeral_state" / "ephemeral-state.js"

# Pages of a project's own consumer, with the mixin.
_SOCKET: Final = 'const socket = new WebSocket("ws://" + location.host + "/ws/own/" + location.search);'
_ANSWERS: Final = """socket.addEventListener("message", ({ data }) => {
  if (JSON.parse(data)._orama === "ephemeral.ping") socket.send(data.replace("ping", "pong"));
});"""
# Pages of the ready-made consumer.
_SETS: Final = """socket.addEventListener("open", () => socket.send(JSON.stringify(
  { _orama: "ephemeral.set", topic: TOPIC, key: "here:" + Math.random(), ttl_ms: null })));"""
_BUNDLED: Final = """import { EphemeralState } from "/ephemeral-state.js";
new EphemeralState("/ws/state/").topic(TOPIC).set("here:" + Math.random(), {});"""


def _of_the_docs(file: str, pattern: str) -> str:
    """The JavaScript block of a page of the docs that this is found in."""
    blocks = re.findall(r"^```js\n(.*?)^```$", (_ROOT / file).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if pattern in block]
    return found


def _ten_lines() -> str:
    text = _of_the_docs("docs/protocol.md", "const live = new Map()")
    for written, here in (("wss://example.com", "ws://${location.host}"), ('"room:1"', "${JSON.stringify(TOPIC)}")):
        if written not in text:
            raise RuntimeError(f"{written} is not in the client of docs/protocol.md")
        text = text.replace(written, here)
    # An address and a frame that hold something of this page.
    text = re.sub(r"\"(ws://\$.*?)\"|'(\{.*?\$\{.*?\}\})'", lambda found: f"`{found[1] or found[2]}`", text)
    return f"{text}\n{_SETS}"


KINDS: Final[dict[str, Callable[[], str]]] = {
    "knows nothing": lambda: _SOCKET,
    "answers": lambda: f"{_SOCKET}\n{_ANSWERS}",
    "README": lambda: f"{_SOCKET}\n{_of_the_docs('README.md', 'pagehide')}",
    "ten lines": _ten_lines,
    "bundled": lambda: _BUNDLED,
}
"""What a page does: three with the mixin, two with the ready-made consumer."""

# In a tab of its own, since the browser keeps no page whose tab is tied to another one.
_HIDES: Final = 'document.onvisibilitychange = () => document.hidden && say("hidden"); open("/other", "", "noopener");'
WAYS: Final[dict[str, str]] = {
    "link": 'say("leaves"); location.href = "/other";',
    "back": 'say("leaves"); history.back();',
    "reload": 'say("leaves"); sessionStorage.reloaded = true; location.reload();',
    "close": "",  # by the page that has opened it
    "crash": "",  # by whoever runs the browser
    "freeze": f'document.addEventListener("freeze", () => say("frozen")); {_HIDES}',
    "hidden": _HIDES,
}
"""How it goes. It says so just before, where it can."""

_SAYS: Final = """const TOPIC = new URLSearchParams(location.search).get("topic");
const say = (what) => navigator.sendBeacon(`/said?topic=${encodeURIComponent(TOPIC)}&what=${what}`);"""
# Once it is loaded: otherwise the next page would take its place in the history.
_AFTER: Final = 'addEventListener("load", () => setTimeout(() => {{ {what} }}, {ms}));'


def _page(query: dict[str, str]) -> str:
    kind, way = query["kind"], query["way"]
    leaves = _AFTER.format(what=f"if (!sessionStorage.reloaded) {{ {WAYS[way]} }}", ms=query["ms"])
    script = f"{KINDS[kind]()}\n{leaves}" if kind != "bundled" else f"{leaves}\n"
    module = f'<script type="module">{_BUNDLED}</script>' if kind == "bundled" else ""
    return f"<!doctype html><title>{kind}</title><script>{_SAYS}\n{script}</script>{module}"


def _before(query: dict[str, str]) -> str:
    """What is opened first, for the ways that need another page."""
    if query["way"] == "close":
        closes = _AFTER.format(what='say("leaves"); tab.close();', ms=query["ms"])
        script = f'const tab = open("/page" + location.search);\n{closes}'
    else:
        script = _AFTER.format(what='location.href = "/page" + location.search;', ms=500)
    return f"<!doctype html><title>before</title><script>{_SAYS}\n{script}</script>"


class Own(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    """As in README."""

    async def connect(self) -> None:
        topic = dict(parse_qsl(self.scope["query_string"].decode()))["topic"]
        await self.accept()
        await self.ephemeral_subscribe(topic)
        await self.ephemeral_set(topic, f"here:{self.channel_name}", {"name": "Zoé"}, ttl=UNTIL_DISCONNECT)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"the application got {json.dumps(content)}")


async def _pages(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    query = dict(parse_qsl(scope["query_string"].decode()))
    kind, status = "text/html", 200
    match scope["path"]:
        case "/page":
            text = _page(query)
        case "/before":
            text = _before(query)
        case "/other":
            text = "<!doctype html><title>other</title>another page"
        case "/ephemeral-state.js":
            text, kind = _CLIENT.read_text(), "text/javascript"
        case "/said":
            await api.aset(query["topic"], query["what"])
            text = ""
        case _:
            text, status = "", 404
    headers = [(b"content-type", f"{kind}; charset=utf-8".encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


application = ProtocolTypeRouter(
    {
        "http": _pages,
        "websocket": URLRouter([path("ws/own/", Own.as_asgi()), path("ws/state/", EphemeralStateConsumer.as_asgi())]),
    }
)
