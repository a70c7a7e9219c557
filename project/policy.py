"""Who may do what at `/ws/state/`, where the package's ready-made consumer answers."""

from collections.abc import Mapping
from typing import Any

from ephemeral_state.policy import Policy

LOBBY = "demo:lobby"
"""Who is in which room. Only `ChatConsumer` writes it, so that nobody can be put into a room by somebody else."""


class DemoPolicy(Policy):
    """Topics under `demo:` are everybody's playground; everything else, the rooms' topics too, is nobody's."""

    def can_subscribe(self, scope: Mapping[str, Any], namespace: str, topic: str) -> bool:
        return topic.startswith("demo:")

    def can_set(self, scope: Mapping[str, Any], namespace: str, topic: str, key: str) -> bool:
        return topic.startswith("demo:") and topic != LOBBY
