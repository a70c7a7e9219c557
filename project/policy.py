"""Who may do what with the package's own frames, at `/ws/state/` and in a room's socket."""

from collections.abc import Mapping
from typing import Any

from ephemeral_state.policy import Policy

LOBBY = "demo:lobby"
"""Who is in which room. Only `ChatConsumer` writes it, so that nobody can be put into a room by somebody else."""


class DemoPolicy(Policy):
    """Topics under `demo:` are everybody's playground. A room's topic is for those whom `ChatConsumer` has let into it;
    there one may only type and point, and only as oneself. `async`, since it need not look into the database."""

    async def can_subscribe(self, scope: Mapping[str, Any], namespace: str, topic: str) -> bool:
        return topic.startswith("demo:") or topic == scope.get("room")

    async def can_set(self, scope: Mapping[str, Any], namespace: str, topic: str, key: str) -> bool:
        if topic == scope.get("room"):
            return "author" in scope and key in (f"typing:{scope['author']}", f"cursor:{scope['author']}")
        return topic.startswith("demo:") and topic != LOBBY
