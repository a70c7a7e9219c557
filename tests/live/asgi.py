"""What a live server is pointed at."""

from __future__ import annotations

import os
import sys
import threading

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.live.settings")
django.setup()

from .app import application  # noqa: E402

__all__ = ["application"]


def _end_with_the_tests() -> None:
    sys.stdin.read()
    os._exit(1)


if os.environ.get("END_WITH_STDIN"):
    # However the tests end: a killed test run must not leave servers behind.
    threading.Thread(target=_end_with_the_tests, name="end-with-the-tests", daemon=True).start()
