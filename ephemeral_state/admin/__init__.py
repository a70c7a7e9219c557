"""What is live, in Django's admin: `entries` the pages and acts, `reading` what they show, `text` how it is written."""

from __future__ import annotations

from .entries import EntryAdmin

__all__ = ["EntryAdmin"]
