"""The WebSockets."""

from django.urls import path

from ephemeral_state.consumers import EphemeralStateConsumer

from .consumers import ChatConsumer

websocket_urlpatterns = [
    path("ws/state/", EphemeralStateConsumer.as_asgi()),
    path("ws/chat/<str:slug>/", ChatConsumer.as_asgi()),
]
