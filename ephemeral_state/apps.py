"""Django's entry: checks and admin come with `"ephemeral_state"` in `INSTALLED_APPS`."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

__all__ = ["EphemeralStateConfig"]


class EphemeralStateConfig(AppConfig):
    name = "ephemeral_state"
    verbose_name = "Ephemeral state"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from .checks import check_configuration, check_store_answers
        from .metrics import register as register_metrics
        from .revocation import connect_signals

        connect_signals()
        register_metrics()
        register(check_configuration, self.name)
        register(check_store_answers, Tags.database)
