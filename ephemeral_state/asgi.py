"""The lifespan protocol for a project's ASGI application: state is cleared before the server stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .node import drain

__all__ = ["with_lifespan"]

Application = Callable[[Any, Any, Any], Awaitable[None]]


def with_lifespan(application: Application) -> Application:
    """Wrap the outermost ASGI application: `application = with_lifespan(ProtocolTypeRouter({...}))`.

    For servers that end without a signal, and for uvicorn with a stuck handler. Do not use it around an application
    that handles lifespan itself; call `ephemeral_state.node.drain` from its shutdown instead.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await drain()
                await send({"type": "lifespan.shutdown.complete"})
                return

    return wrapped
