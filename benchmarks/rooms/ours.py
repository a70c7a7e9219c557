"""The ready-made consumer, for everybody."""

from __future__ import annotations

from typing import Any

import django

django.setup()

from ephemeral_state.consumers import EphemeralStateConsumer  # noqa: E402
from ephemeral_state.policy import Policy  # noqa: E402


class AllowAll(Policy):
    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


application = EphemeralStateConsumer.as_asgi()
