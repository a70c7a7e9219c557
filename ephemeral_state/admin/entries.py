"""The pages of the admin, and what one can do there: each act has a permission, is confirmed, and is logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from .. import api
from ..background import wait
from ..errors import EphemeralStateError
from ..inspection.clearing import Clearing
from ..models import Entry
from ..printing import printable
from ..state import Topic
from .acts import disconnect
from .reading import Found, entry_page, find, overview, tag
from .text import NAME_LENGTH, Filters, Identity, read_token, short

__all__ = ["EntryAdmin"]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Entry]
else:
    _ModelAdmin = admin.ModelAdmin

_CLEAR: Final = "clear_selected"
_CLEAR_TOPIC: Final = "clear_topic"
_DISCONNECT: Final = "disconnect"
_DEFAULT_CODE: Final = 4000
_SHOWN: Final = 100  # entries of a topic in the question whether to clear it
_LOGGED: Final = 200  # characters of a description, as many as LogEntry keeps


@admin.register(Entry)
class EntryAdmin(_ModelAdmin):
    """Nothing here asks the database about entries."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("live/", view(self.live_view), name=f"{name}_live"),
            path("entry/", view(self.entry_view), name=f"{name}_entry"),
            path("overview/", view(self.overview_view), name=f"{name}_overview"),
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Entry | None = None) -> bool:
        return False

    def _may(self, request: HttpRequest, act: str) -> bool:
        if act == _CLEAR:
            return self.has_delete_permission(request)
        codename = {_CLEAR_TOPIC: "clear_topic", _DISCONNECT: "disconnect_client"}[act]
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    # The list

    def changelist_view(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if "action" in request.POST:
            return self._act(request)
        filters = Filters.read(request.GET)
        cursor = request.POST.get("cursor") or request.GET.get("cursor", "")
        found, fault = Found(), ""
        try:
            found = wait(lambda: find(filters, cursor))
        except EphemeralStateError as error:
            fault = str(error)
        except ValueError:
            if not cursor:
                raise
            self.message_user(request, "There is no such page any more; this is the first.", messages.WARNING)
            return HttpResponseRedirect(filters.url())
        live = short(reverse(f"{self.admin_site.name}:{self._name('live')}") + filters.url(cursor=cursor))
        context = {
            **self._results(request, filters, cursor, found, fault),
            "title": capfirst(self.opts.verbose_name_plural),
            "processes": _choices(filters, "process", [(each["node"], each["name"]) for each in found.processes]),
            "lifetimes": _choices(
                filters, "lifetime", [("connection", "Until disconnect"), ("deadline", "With a deadline")]
            ),
            "active_filters": _active(filters),
            "overview_url": reverse(f"{self.admin_site.name}:{self._name('overview')}"),
            "live_url": live,
        }
        return self._render(request, "change_list", context, extra_context, status=503 if fault else 200)

    def live_view(self, request: HttpRequest) -> HttpResponse:
        """The rows of the list as they are now, for a page that is open; 304 if it shows them already."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        filters, cursor = Filters.read(request.GET), request.GET.get("cursor", "")
        try:
            found = wait(lambda: find(filters, cursor))
        except EphemeralStateError as error:
            return _unreadable(error)
        except ValueError:
            return HttpResponse("no such page", status=410, content_type="text/plain")
        mark = tag(found.rows, bool(found.cursor), self._may(request, _CLEAR))
        return self._fragment(request, "results", mark, self._results(request, filters, cursor, found, ""))

    def _results(self, request: HttpRequest, filters: Filters, cursor: str, found: Found, fault: str) -> dict[str, Any]:
        return {
            "rows": found.rows,
            "named": bool(filters.namespace) or any(row["namespace"] for row in found.rows),
            "fault": fault,
            "filters": filters,
            "cursor": cursor,
            "next_cursor": found.cursor,
            "next_url": short(filters.url(cursor=found.cursor)),
            "columns": _columns(filters),
            "may_clear": self._may(request, _CLEAR),
            "may_clear_topic": filters.topic is not None
            and filters.namespace is not None
            and self._may(request, _CLEAR_TOPIC),
            "action": _CLEAR,
            "opts": self.opts,
        }

    # One entry

    def entry_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            identity = read_token(request.GET.get("id", ""))
        except ValueError:
            self.message_user(request, "There is no such entry.", messages.WARNING)
            return HttpResponseRedirect(reverse(f"{self.admin_site.name}:{self._name('changelist')}"))
        if "action" in request.POST:
            return self._act(request)
        facts, fault = None, ""
        try:
            facts = wait(lambda: entry_page(identity))
        except EphemeralStateError as error:
            if "live" in request.GET:
                return _unreadable(error)
            fault = str(error)
        context = {
            "title": f"Live entry {printable(identity.key, NAME_LENGTH)}",
            "identity": identity.shown(),
            "facts": facts,
            "fault": fault,
            "may_clear": self._may(request, _CLEAR),
            "may_disconnect": self._may(request, _DISCONNECT),
            "default_code": _DEFAULT_CODE,
            "topic_url": short(Filters(identity.namespace, identity.topic).url()),
            "live_url": "?" + urlencode({"id": request.GET["id"], "live": "1"}),
        }
        if "live" in request.GET:
            return self._fragment(request, "entry_live", "", context)
        return self._render(request, "entry", context, status=503 if fault else 200)

    # The overview

    def overview_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        facts: dict[str, Any] = {}
        fault = ""
        try:
            facts = wait(overview)
        except EphemeralStateError as error:
            if "live" in request.GET:
                return _unreadable(error)
            fault = str(error)
        if "live" in request.GET:
            return self._fragment(request, "overview_live", "", facts)
        context = {"title": "Ephemeral state now", "fault": fault, **facts}
        return self._render(request, "overview", context, status=503 if fault else 200)

    # Acts

    def _act(self, request: HttpRequest) -> HttpResponse:
        action = request.POST["action"]
        back = HttpResponseRedirect(request.get_full_path())
        acts: dict[str, Callable[[HttpRequest, HttpResponseRedirect], HttpResponse]] = {
            _CLEAR: self._clear_selected,
            _CLEAR_TOPIC: self._clear_topic,
            _DISCONNECT: self._disconnect,
        }
        if action not in acts:
            if not any(self._may(request, act) for act in acts):
                raise PermissionDenied
            self.message_user(request, _("No action selected."), messages.WARNING)
            return back
        if not self._may(request, action):
            raise PermissionDenied
        return acts[action](request, back)

    def _clear_selected(self, request: HttpRequest, back: HttpResponseRedirect) -> HttpResponse:
        tokens = request.POST.getlist("_selected_action")
        if not tokens:
            text = _("Items must be selected in order to perform actions on them. No items have been changed.")
            self.message_user(request, text, messages.WARNING)
            return back
        try:
            entries = [read_token(token) for token in tokens]
        except ValueError:
            text = "The selection cannot be read; nothing was cleared. Please select the entries again."
            self.message_user(request, text, messages.ERROR)
            return back
        if request.POST.get("post"):
            self._clear(request, entries)
            return back
        question = (
            f"Are you sure you want to clear the selected {self.opts.verbose_name_plural}? Every subscriber will see "
            "them go. The owner of an entry stays connected and may set it again."
        )
        return self._confirm(request, back, _CLEAR, question, entries, {"_selected_action": tokens})

    def _clear_topic(self, request: HttpRequest, back: HttpResponseRedirect) -> HttpResponse:
        namespace, topic = request.GET.get("namespace"), request.GET.get("topic")
        if namespace is None or topic is None:
            raise PermissionDenied
        where = Topic(namespace, topic)
        if request.POST.get("post"):
            self._clear_all_of(request, where)
            return back
        try:
            (number,) = api.count([topic], namespace=namespace).values()
            first = api.browse(namespace=namespace, topic=topic, limit=_SHOWN).entries
        except EphemeralStateError as error:
            self.message_user(request, f"Failed to read the topic: {error}", messages.ERROR)
            return back
        question = (
            f"Are you sure you want to clear all {number} live entries of this topic, and what will have been "
            "set there until you say yes? Every subscriber will see them go. Their owners stay connected."
        )
        entries = [Identity(*where, entry.key, entry.client_id) for entry in first]
        return self._confirm(request, back, _CLEAR_TOPIC, question, entries, {})

    def _disconnect(self, request: HttpRequest, back: HttpResponseRedirect) -> HttpResponse:
        try:
            identity = read_token(request.POST.get("client", ""))
            code = int(request.POST.get("code", ""))
            if code != 1000 and not 3000 <= code <= 4999:
                raise ValueError(code)
        except ValueError:
            text = "Nobody was disconnected: a close code is 1000, or from 3000 to 4999."
            self.message_user(request, text, messages.ERROR)
            return back
        owner = printable(identity.owner, NAME_LENGTH)
        if not request.POST.get("post"):
            question = (
                "Are you sure you want to disconnect the owner of this entry? Its socket is closed with the code "
                f"{code}, and all that it owns is cleared, in all topics."
            )
            fields = {"client": [identity.token()], "code": [str(code)]}
            return self._confirm(request, back, _DISCONNECT, question, [identity], fields)
        try:
            fault = wait(lambda: disconnect(identity.owner, code))
        except EphemeralStateError as error:
            self.message_user(request, f"Failed to disconnect {owner}: {error}", messages.ERROR)
            return back
        if fault:
            self._log(request, [owner], f"Cleared; the socket could not be closed: {fault}.")
            text = f"All that {owner} owned is cleared, but its socket could not be closed: {fault}"
            self.message_user(request, text, messages.WARNING)
        else:
            self._log(request, [owner], f"Disconnected, with the code {code}.")
            self.message_user(request, f"Disconnected {owner}.", messages.SUCCESS)
        return back

    def _clear(self, request: HttpRequest, entries: Sequence[Identity]) -> None:
        done, fault = Clearing(), ""
        try:
            wait(lambda: done.entries([each.clear() for each in entries]))
        except EphemeralStateError as error:
            fault = str(error)
        finally:  # what is cleared is cleared, whatever became of the others
            cleared = map(Identity.of, done.cleared)
            self._log(request, [f"{each.in_words()}, set by {each.shown()['owner']}" for each in cleared], "Cleared.")
        self._tell(request, done)
        if fault:
            failed = len(entries) - len(done.cleared) - done.missed
            self.message_user(request, f"Failed to clear {self._count(failed)}: {fault}", messages.ERROR)

    def _clear_all_of(self, request: HttpRequest, topic: Topic) -> None:
        done, fault = Clearing(), ""
        try:
            wait(lambda: done.topic(topic))
        except EphemeralStateError as error:
            fault = str(error)
        finally:
            if done.cleared:
                words = " › ".join(printable(name, NAME_LENGTH) for name in topic if name)
                self._log(request, [words], f"Cleared {self._count(len(done.cleared))} of the topic.")
        self._tell(request, done)
        if fault:
            self.message_user(request, f"Failed to clear the whole topic: {fault}", messages.ERROR)
        elif not done.cleared and not done.missed:
            self.message_user(request, "There was nothing to clear.", messages.WARNING)

    def _tell(self, request: HttpRequest, done: Clearing) -> None:
        if done.cleared:
            self.message_user(request, f"Cleared {self._count(len(done.cleared))}.", messages.SUCCESS)
        if done.missed:
            verb = "was" if done.missed == 1 else "were"
            self.message_user(request, f"{done.missed} {verb} gone or taken over already.", messages.WARNING)

    def _log(self, request: HttpRequest, what: Sequence[str], message: str) -> None:
        kind = ContentType.objects.get_for_model(Entry)
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=request.user.pk or 0,
                content_type=kind,
                object_repr=words[:_LOGGED],
                action_flag=DELETION,
                change_message=message,
            )
            for words in what
        )

    def _count(self, number: int) -> str:
        return f"{number} {self.opts.verbose_name if number == 1 else self.opts.verbose_name_plural}"

    # Rendering

    def _name(self, view: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{view}"

    def _confirm(
        self,
        request: HttpRequest,
        back: HttpResponseRedirect,
        action: str,
        question: str,
        entries: Sequence[Identity],
        fields: Mapping[str, Sequence[str]],
    ) -> HttpResponse:
        context = {
            "title": _("Are you sure?"),
            "question": question,
            "rows": [identity.shown() for identity in entries],
            "fields": [(name, value) for name, values in fields.items() for value in values],
            "action": action,
            "back": back.url,
        }
        return self._render(request, "delete_selected_confirmation", context)

    def _fragment(self, request: HttpRequest, template: str, mark: str, context: Mapping[str, Any]) -> HttpResponse:
        if mark and request.headers.get("If-None-Match") == mark:
            return HttpResponseNotModified()
        headers = {"Cache-Control": "no-store", **({"ETag": mark} if mark else {})}
        name = f"admin/ephemeral_state/entry/{template}.html"
        return TemplateResponse(request, name, {**context}, headers=headers)

    def _render(
        self,
        request: HttpRequest,
        template: str,
        context: Mapping[str, Any],
        extra_context: Mapping[str, Any] | None = None,
        status: int = 200,
    ) -> TemplateResponse:
        list_url = "" if template == "change_list" else reverse(f"{self.admin_site.name}:{self._name('changelist')}")
        common = {**self.admin_site.each_context(request), "opts": self.opts, "list_url": list_url}
        return TemplateResponse(
            request,
            f"admin/ephemeral_state/entry/{template}.html",
            {**common, **context, **(extra_context or {})},
            status=status,
        )


def _unreadable(error: EphemeralStateError) -> HttpResponse:
    """For a page that is open already: it shows the text beside what it has."""
    return HttpResponse(f"the store cannot be read: {error}", status=503, content_type="text/plain")


def _active(filters: Filters) -> list[dict[str, str]]:
    """The filters in force that were chosen by a click on a value, each with the address of the list without it."""
    return [
        {"title": name, "value": printable(value, NAME_LENGTH), "url": filters.but(name, None).url()}
        for name in ("namespace", "topic", "user")
        if (value := getattr(filters, name)) is not None
    ]


def _choices(filters: Filters, name: str, values: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    chosen = getattr(filters, name)
    if chosen is not None and chosen not in dict(values):
        values = [*values, (chosen, printable(chosen, NAME_LENGTH))]
    return [
        {"title": title, "url": filters.but(name, value).url(), "selected": value == chosen}
        for value, title in [(None, _("All")), *values]
    ]


def _columns(filters: Filters) -> list[dict[str, str]]:
    """The heads of the columns. A click sorts the page, another one the other way round."""
    titles = {
        "namespace": "Namespace",
        "topic": "Topic",
        "key": "Key",
        "payload": "Payload",
        "time_left": "Time left",
        "owner": "Owner",
        "user": "User",
        "process": "Process",
        "age": "Age",
    }
    order = filters.order
    return [
        {
            "name": name,
            "title": title,
            "url": short(filters._replace(order=f"-{name}" if order == name else name).url()),
            "sorted": "ascending" if order == name else "descending" if order == f"-{name}" else "",
        }
        for name, title in titles.items()
    ]
