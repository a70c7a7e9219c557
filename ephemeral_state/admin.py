"""What is live, in Django's admin: a list read from the store, page by page, where entries can be cleared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.http import urlencode
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from . import api
from .errors import EphemeralStateError
from .models import Entry
from .state import Entry as LiveEntry
from .state import Page, Topic

__all__ = ["EntryAdmin"]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Entry]
else:
    _ModelAdmin = admin.ModelAdmin

_PAGE_SIZE: Final = 100
_NAME_LENGTH: Final = 80
_PAYLOAD_LENGTH: Final = 160
_MAX_URL: Final = 4000  # characters; servers and proxies refuse URLs of 8 to 16 kB, and names may be as long
_SALT: Final = "ephemeral_state.admin"
_ACTION: Final = "clear_selected"


@admin.register(Entry)
class EntryAdmin(_ModelAdmin):
    """Nothing here asks the database about entries. Whoever may view may look; clearing takes the delete permission."""

    def get_urls(self) -> list[URLPattern]:
        # No entry has a page of its own: it may be gone before the link to it is clicked.
        view = self.admin_site.admin_view(self.changelist_view)
        return [path("", view, name=f"{self.opts.app_label}_{self.opts.model_name}_changelist")]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Entry | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if "action" in request.POST:
            return self._act(request, extra_context)
        return self._list(request, extra_context)

    def _list(self, request: HttpRequest, extra_context: Mapping[str, Any] | None) -> HttpResponse:
        filters = _Filters.read(request.GET)
        cursor = request.POST.get("cursor") or request.GET.get("cursor", "")
        page, fault = Page((), ""), ""
        try:
            page = api.browse(cursor=cursor, limit=_PAGE_SIZE, **filters._asdict())
        except EphemeralStateError as error:
            fault = str(error)
        except ValueError:
            if not cursor:
                raise
            self.message_user(request, "There is no such page any more; this is the first.", messages.WARNING)
            return HttpResponseRedirect(filters.url())
        context = {
            "title": capfirst(self.opts.verbose_name_plural),
            "rows": [_row(entry) for entry in page.entries],
            "fault": fault,
            "filters": filters,
            "active_filters": _active(filters),
            "cursor": cursor,
            "next_cursor": page.cursor,
            "next_url": _short(filters.url(cursor=page.cursor)),
            "may_clear": self.has_delete_permission(request),
            "action": _ACTION,
        }
        return self._render(request, "change_list", context, extra_context, status=503 if fault else 200)

    def _act(self, request: HttpRequest, extra_context: Mapping[str, Any] | None) -> HttpResponse:
        if not self.has_delete_permission(request):
            raise PermissionDenied
        back = HttpResponseRedirect(request.get_full_path())
        tokens = request.POST.getlist("_selected_action")
        if request.POST["action"] != _ACTION:
            self.message_user(request, _("No action selected."), messages.WARNING)
            return back
        if not tokens:
            text = _("Items must be selected in order to perform actions on them. No items have been changed.")
            self.message_user(request, text, messages.WARNING)
            return back
        try:
            entries = [_read_token(token) for token in tokens]
        except ValueError:
            text = "The selection cannot be read; nothing was cleared. Please select the entries again."
            self.message_user(request, text, messages.ERROR)
            return back
        if not request.POST.get("post"):
            rows = [_row(LiveEntry(Topic(n, t), key, owner, b"", None)) for n, t, key, owner in entries]
            context = {"title": _("Are you sure?"), "rows": rows, "action": _ACTION, "back": back.url}
            return self._render(request, "delete_selected_confirmation", context, extra_context)
        self._clear(request, entries)
        return back

    def _clear(self, request: HttpRequest, entries: Sequence[_Identity]) -> None:
        cleared, fault = 0, ""
        for namespace, topic, key, owner in entries:
            try:
                # For the owner that was seen: what a successor has set meanwhile stays.
                api.clear(topic, key, client=owner, namespace=namespace)
            except EphemeralStateError as error:
                fault = str(error)
                break  # a store that does not answer would take its whole time limit for each of the others
            cleared += 1
        if cleared:
            self.message_user(request, f"Cleared {self._count(cleared)}.", messages.SUCCESS)
        if fault:
            text = f"Failed to clear {self._count(len(entries) - cleared)}: {fault}"
            self.message_user(request, text, messages.ERROR)

    def _count(self, number: int) -> str:
        return f"{number} {self.opts.verbose_name if number == 1 else self.opts.verbose_name_plural}"

    def _render(
        self,
        request: HttpRequest,
        template: str,
        context: Mapping[str, Any],
        extra_context: Mapping[str, Any] | None,
        status: int = 200,
    ) -> TemplateResponse:
        media = forms.Media(css={"all": ["ephemeral_state/admin.css"]}, js=["admin/js/actions.js"])
        common = {**self.admin_site.each_context(request), "opts": self.opts, "media": media}
        return TemplateResponse(
            request,
            f"admin/ephemeral_state/entry/{template}.html",
            {**common, **context, **(extra_context or {})},
            status=status,
        )


class _Filters(NamedTuple):
    """What the list is narrowed to. An empty namespace is one like any other; `None` means all of them."""

    namespace: str | None = None
    topic: str | None = None
    search: str = ""

    @classmethod
    def read(cls, query: QueryDict) -> _Filters:
        return cls(query.get("namespace"), query.get("topic"), query.get("q", ""))

    def url(self, **more: str) -> str:
        given = {"namespace": self.namespace, "topic": self.topic, "q": self.search or None, **more}
        return "?" + urlencode({name: value for name, value in given.items() if value is not None})


class _Identity(NamedTuple):
    namespace: str
    topic: str
    key: str
    owner: str

    def token(self) -> str:
        """Itself as a form value. Signed, so that whatever else comes back is known for garbage."""
        return signing.dumps(self, salt=_SALT, compress=True)


def _read_token(token: str) -> _Identity:
    """Raises `ValueError`."""
    try:
        return _Identity(*signing.loads(token, salt=_SALT))
    except (signing.BadSignature, TypeError) as error:
        raise ValueError("not one of our tokens") from error


def _row(entry: LiveEntry) -> dict[str, str]:
    """An entry as text that can be shown; the template escapes it."""
    identity = _Identity(*entry.topic, entry.key, entry.client_id)
    shown = {name: _printable(value, _NAME_LENGTH) for name, value in identity._asdict().items()}
    return shown | {
        "token": identity.token(),
        "namespace_url": _short(_Filters(identity.namespace).url()),
        "topic_url": _short(_Filters(*entry.topic).url()),
        "payload": _payload(entry.payload),
        "size": str(len(entry.payload)),
        "time_left": _time_left(entry.expires_in_ms),
    }


def _active(filters: _Filters) -> list[dict[str, str]]:
    """The filters in force, each with the address of the list without it."""
    given = (
        ("namespace", filters.namespace, filters._replace(namespace=None)),
        ("topic", filters.topic, filters._replace(topic=None)),
    )
    return [
        {"title": name, "value": _printable(value, _NAME_LENGTH), "url": without.url()}
        for name, value, without in given
        if value is not None
    ]


def _payload(payload: bytes) -> str:
    """The payload as it was written, for JSON is text too; as hex if it is no text."""
    try:
        return _printable(payload.decode(), _PAYLOAD_LENGTH)
    except UnicodeDecodeError:
        length = _PAYLOAD_LENGTH // 3
        return f"hex {payload[:length].hex(' ')}{'…' if len(payload) > length else ''}"


def _printable(text: str, length: int) -> str:
    """At most `length` characters, with those that are invisible or turn the text around as escapes."""
    cut = text[:length] + ("…" if len(text) > length else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _time_left(ms: int | None) -> str:
    if ms is None:
        return "until disconnect"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes} min {rest // 1000} s" if minutes else f"{rest // 100 / 10} s"


def _short(url: str) -> str:
    return url if len(url) <= _MAX_URL else ""
