"""The test settings, and what the parent process says in FAULTS: CHANNEL_LAYERS and EPHEMERAL_STATE as JSON."""

import json
import os

from tests.settings import *  # noqa: F403

globals().update(json.loads(os.environ["FAULTS"]))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"ephemeral_state": {"level": os.environ.get("LOG_LEVEL", "WARNING")}},
}
