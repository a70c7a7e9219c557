"""Settings of the servers that are measured. `BENCHMARK` is what differs between them, as JSON: the channel layer and
the Redis it may use. Everything else is as a project gets it that sets nothing, but for how much one client may
send."""

import json
import os

_LAYERS = {
    "memory": "channels.layers.InMemoryChannelLayer",
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}
_given = json.loads(os.environ["BENCHMARK"])
_shared = _given["layer"] != "memory"
_HOST = {"address": _given["redis"], "socket_timeout": None}

SECRET_KEY = "for benchmarks only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["channels", "ephemeral_state"]
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": _LAYERS[_given["layer"]],
        "CONFIG": {"hosts": [_HOST], "prefix": _given["prefix"]} if _shared else {},
    }
}
EPHEMERAL_STATE = {"POLICY": "benchmarks.rooms.ours.AllowAll"}
if not _given["asked"]:
    EPHEMERAL_STATE |= {"PING_INTERVAL": 0}
if not _given["limited"]:
    # One client writes as fast as the server lets it, and is not to be slowed down for that.
    EPHEMERAL_STATE |= {"MAX_FRAMES_PER_SECOND": 10**6, "MAX_FRAME_BURST": 10**6}
if _shared:
    EPHEMERAL_STATE |= {
        "BACKEND": "ephemeral_state.stores.redis.RedisStore",
        "OPTIONS": {"url": _given["redis"], "prefix": _given["prefix"]},
    }
