"""What gunicorn serves: the admin, and views that set, clear and count, without any event loop of the server's."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")

import django

django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from ephemeral_state import api  # noqa: E402


def many(request: HttpRequest, number: int) -> HttpResponse:
    for n in range(number):
        api.set("many", f"{n % 50}", f"{n}", ttl=600)
    return counts(request)


def counts(request: HttpRequest) -> HttpResponse:
    gc.collect()
    loops = [each for each in gc.get_objects() if isinstance(each, asyncio.BaseEventLoop) and each.is_running()]
    here = {"threads": threading.active_count(), "loops": len(loops), "files": len(os.listdir("/proc/self/fd"))}
    return JsonResponse(here)


class RolledBack(Exception):
    pass


def say(request: HttpRequest, text: str) -> HttpResponse:
    """A message ends the typing, both or neither, and the message comes first."""
    try:
        with transaction.atomic():
            User.objects.create(username=text)
            api.set("room", f"message:{text}", text, ttl=5, on_commit=True)
            api.clear("room", "typing", on_commit="default")
            before = len(api.list("room"))
            if text.startswith("no"):
                raise RolledBack
    except RolledBack:
        return JsonResponse({"before": before, "committed": False})
    return JsonResponse({"before": before, "committed": True})


urlpatterns = [
    path("admin/", admin.site.urls),
    path("many/<int:number>/", many),
    path("counts/", counts),
    path("say/<str:text>/", say),
]
application = get_wsgi_application()
