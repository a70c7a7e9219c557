"""`Entry`: no table, only the name that Django's permissions and admin go by."""

from __future__ import annotations

from django.db import models

__all__ = ["Entry"]


class _NoRows(models.Manager["Entry"]):
    """Answers every query without asking the database: `dumpdata` and its like look at all models, and there is
    no table to look into."""

    def get_queryset(self) -> models.QuerySet[Entry]:
        return super().get_queryset().none()


class Entry(models.Model):
    """Stands for the live entries of the store; read them with `ephemeral_state.api`."""

    objects = _NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "delete")
        permissions = (
            ("clear_topic", "Can clear a whole topic"),
            ("disconnect_client", "Can disconnect the owner of a live entry"),
        )
        verbose_name = "live entry"
        verbose_name_plural = "live entries"
