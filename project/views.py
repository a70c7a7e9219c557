"""The two pages: the rooms, and a room."""

from __future__ import annotations

from django import forms
from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from .models import Room
from .policy import LOBBY


class RoomForm(forms.Form):
    room = forms.CharField(max_length=60)

    def clean_room(self) -> str:
        return " ".join(self.cleaned_data["room"].split())


@require_http_methods(["GET", "HEAD", "POST"])
def home(request: HttpRequest) -> HttpResponse:
    form = RoomForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect(Room.open(form.cleaned_data["room"]))
    rooms = Room.objects.annotate(count=Count("messages"), last=Max("messages__sent_at"))
    context = {"form": form, "rooms": rooms.order_by("-last", "-created_at")[:50], "lobby": LOBBY}
    return render(request, "project/home.html", context, status=400 if form.errors else 200)


@require_safe
def room(request: HttpRequest, slug: str) -> HttpResponse:
    found = Room.objects.filter(slug=slug).first()
    if found is None:
        return render(request, "project/missing.html", {"slug": slug}, status=404)
    return render(request, "project/room.html", {"room": found})
