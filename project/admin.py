"""The rooms and their messages in the admin."""

from django.contrib import admin

from .models import Message, Room


@admin.register(Room)
class RoomAdmin(admin.ModelAdmin):
    list_display = ("name", "slug", "created_at")
    search_fields = ("name",)


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ("room", "name", "text", "sent_at")
    list_filter = ("room",)
    list_select_related = ("room",)
    search_fields = ("name", "text")
