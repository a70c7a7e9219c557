"""What is live, in Django's admin: `entries` the pages, `reading` what they show, `text` how it is written, and `acts`
what can be done to owners. What the command does too is in `ephemeral_state.inspection`."""

from __future__ import annotations

from .entries import EntryAdmin

__all__ = ["EntryAdmin"]
