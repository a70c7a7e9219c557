"""The test settings, with a database that several processes share."""

import os

from tests.settings import *  # noqa: F403

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", ":memory:")}}
EPHEMERAL_STATE = {"POLICY": "tests.integrations.apps.Everything"}
