"""What outlives its author: rooms and their messages. Everything else about a chat is ephemeral and has no table."""

from __future__ import annotations

import hashlib
from typing import Any

from django.db import models
from django.urls import reverse
from django.utils.text import slugify

KEPT = 200
"""Messages a room keeps."""


class Room(models.Model):
    name = models.CharField(max_length=60, unique=True)
    slug = models.CharField(max_length=80, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("room", args=[self.slug])

    @property
    def topic(self) -> str:
        """Who is here, who types, and where everybody points."""
        return f"room:{self.pk}"

    @classmethod
    def open(cls, name: str) -> Room:
        """The room of exactly this name, made if there is none."""
        slug = slugify(name, allow_unicode=True)[:60]
        if not slug or cls.objects.filter(slug=slug).exclude(name=name).exists():
            # "C" and "C++" are two rooms, and "!!!" is one too
            slug = f"{slug or 'room'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return cls.objects.get_or_create(name=name, defaults={"slug": slug})[0]


class Message(models.Model):
    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="messages")
    author = models.CharField(max_length=16)
    """Whose it is, for the browser that sent it: a digest of a secret that only that browser has."""
    name = models.CharField(max_length=40)
    color = models.PositiveSmallIntegerField()
    text = models.TextField(max_length=2000)
    sent_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.name}: {self.text[:40]}"

    def frame(self) -> dict[str, Any]:
        """The message as browsers get it."""
        return {
            "id": self.pk,
            "author": self.author,
            "name": self.name,
            "color": self.color,
            "text": self.text,
            "sent_at": self.sent_at.isoformat(),
        }
