"""What the admin does to owners; it clears entries with `inspection.clearing`."""

from __future__ import annotations

from .. import api
from ..errors import StoreUnavailable

__all__ = ["disconnect"]


async def disconnect(client: str, code: int) -> str:
    """Clear all that the client owns and close its socket. Returns what kept the socket from being closed, if anything
    did. Raises an `EphemeralStateError` if the client could not be cleared; then its socket is not closed."""
    await api.adisconnect(client)
    try:
        await api.close_socket(client, code)
    except StoreUnavailable as error:
        return str(error)
    return ""
