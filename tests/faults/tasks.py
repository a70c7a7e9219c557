"""A Celery application: its worker holds entries. The parent of the pool holds one too, from before it forks."""

from __future__ import annotations

import os
import time

import django
from celery import Celery
from celery.signals import worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")
django.setup()

from ephemeral_state import api  # noqa: E402
from ephemeral_state.errors import StoreUnavailable  # noqa: E402

app = Celery("tests", broker=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_send_task_events=False, worker_prefetch_multiplier=1)


@worker_init.connect
def hold_in_the_parent(**_: object) -> None:
    if "PARENT_HOLDS" in os.environ:
        held = api.hold("room", "parent", str(os.getpid()))
        held.__enter__()


@app.task
def work(key: str, until: str) -> None:
    """Hold the key until somebody sets the other one."""
    with api.hold("room", key, str(os.getpid())) as held:
        while not _is_set(until):
            time.sleep(0.05)
        held.set("done")


def _is_set(topic: str) -> bool:
    try:
        return bool(api.list(topic))
    except StoreUnavailable:  # the test has killed Redis
        return False
