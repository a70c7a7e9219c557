"""The test settings as a server process runs them: in-memory channel layer, memory store, a permissive policy."""

from tests.settings import *  # noqa: F403

EPHEMERAL_STATE = {"POLICY": "tests.live.app.AllButDenied"}
