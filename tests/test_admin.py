"""The admin pages through Django's test client, on a real store."""

import asyncio
import json
import re
import time
from html import unescape
from types import SimpleNamespace
from urllib.parse import urlencode

import httpx
import pytest
from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core import signing
from django.db import connection
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, reverse
from websockets.asyncio.client import connect

from ephemeral_state import api, background
from ephemeral_state.admin import reading
from ephemeral_state.admin import text as admin
from ephemeral_state.admin.text import Identity
from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateMixin
from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.state import Clear, Outcome, Page, Set, Topic
from ephemeral_state.stores import get_store
from ephemeral_state.stores.base import Report
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.testing import fresh_store, live

from .browser.process import DemoProcess
from .redis_server import RedisServer

URL = "/admin/ephemeral_state/entry/"
HOSTILE = {
    "html": "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>",
    "template": "{{ settings.SECRET_KEY }}{% debug %}",
    "nul and controls": "a\x00b\x1b[31m\r\n\x7f",
    "turned around": "\u202egnp.exe\u2066\u200f",
    "right to left": "שלום עולם مرحبا",
    "astral": "👩‍🚀🏳️‍🌈",
    "10 kB": "x" * 10_240,
    "10 kB of script": "<script>" * 1280,
    "combining": "a" + "\u0301" * 2000,
    "query string": "?topic=a&namespace=b#c%00%zz",
    "blank": " ",
}


class DownStore(MemoryStore):
    """Browses, or not; never writes."""

    browses = True

    async def browse(self, **kwargs):
        if not self.browses:
            raise StoreUnavailable("no answer from <redis> within 2 s")
        return await super().browse(**kwargs)

    async def apply(self, writes, batches=None):
        return [Outcome((), StoreUnavailable("no answer from <redis> within 2 s")) for _ in writes]


class Deaf(DownStore):
    browses = False


class Away(Deaf):
    async def entry(self, topic, key):
        raise StoreUnavailable("no answer from <redis> within 2 s")

    async def topics(self, **_):
        raise StoreUnavailable("no answer from <redis> within 2 s")


class Room(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.ephemeral_subscribe("room")
        await self.ephemeral_set("room", "here", {"name": "Ann"}, ttl=UNTIL_DISCONNECT)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(background, "_LINGER", 0.05)
    with fresh_store() as clock:
        yield clock


def staff(*codenames):
    user = User.objects.create_user(f"staff-{'-'.join(codenames)}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    assert user.user_permissions.count() == len(codenames)
    return user


def logged_in(*codenames, **options):
    client = Client(**options)
    client.force_login(staff(*codenames))
    return client


@pytest.fixture
def viewer(db):
    return logged_in("view_entry")


@pytest.fixture
def clearer(db):
    return logged_in("view_entry", "delete_entry")


def page(client, url=URL, status=200, **query):
    response = client.get(url, query)
    assert response.status_code == status
    return response.content.decode()


def rows(html):
    """The text of the cells of the list, row by row."""
    body = re.search(r"<tbody[^>]*>(.*)</tbody>", html, re.S)
    cells = [re.findall(r"<t[dh] class=\"field[^>]*>(.*?)</t[dh]>", row, re.S) for row in body[1].split("</tr>")[:-1]]
    return [[unescape(re.sub("<[^>]*>", "", cell)) for cell in row][:6] for row in cells]


def keys(html):
    return [row[2] for row in rows(html)]


def tokens(html):
    return [unescape(token) for token in re.findall(r'name="_selected_action" value="([^"]*)"', html)]


def notices(response):
    return [str(message) for message in response.context["messages"]]


def clear(client, *selected, url=URL, **fields):
    data = {"action": "clear_selected", "_selected_action": selected, "post": "yes"} | fields
    return client.post(url, data, follow=True)


# Who may


@pytest.mark.django_db
def test_strangers_are_sent_to_the_login():
    response = Client().get(URL)
    assert (response.status_code, response.url.split("?")[0]) == (302, "/admin/login/")


@pytest.mark.django_db
@pytest.mark.parametrize("codenames", [[], ["delete_entry"]])
def test_looking_takes_the_view_permission(codenames):
    client = logged_in(*codenames)
    assert client.get(URL).status_code == 403
    assert client.post(URL, {"cursor": "x"}).status_code == 403


def test_viewers_see_the_list_and_have_nothing_to_clear_with(viewer):
    api.set("room", "k", "v")
    html = page(viewer)
    assert keys(html) == ["k"]
    assert not tokens(html)
    assert "clear_selected" not in html


@pytest.mark.parametrize("post", ["yes", ""])
def test_clearing_takes_the_delete_permission(viewer, clearer, post):
    api.set("room", "k", "v", client="ann")
    (token,) = tokens(page(clearer))
    assert clear(viewer, token, post=post).status_code == 403
    assert set(live("room")) == {"k"}


@pytest.mark.django_db
def test_a_clear_without_the_csrf_token_is_refused():
    api.set("room", "k", "v", client="ann")
    client = logged_in("view_entry", "delete_entry", enforce_csrf_checks=True)
    html = page(client)
    selected = {"action": "clear_selected", "_selected_action": tokens(html), "post": "yes"}
    assert client.post(URL, selected).status_code == 403
    assert set(live("room")) == {"k"}
    csrf = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', html)[1]
    assert client.post(URL, selected | {"csrfmiddlewaretoken": csrf}).status_code == 302
    assert live("room") == {}


def test_the_index_and_the_app_list_lead_to_the_list_and_offer_no_adding(viewer):
    for url in ("/admin/", "/admin/ephemeral_state/"):
        html = page(viewer, url)
        assert f'href="{URL}"' in html
        assert "Live entries" in html
        assert f"{URL}add/" not in html


def test_there_are_no_pages_for_adding_changing_or_deleting_one(admin_client):
    for name, args in (("add", []), ("change", ["1"]), ("delete", ["1"]), ("history", ["1"])):
        with pytest.raises(NoReverseMatch):
            reverse(f"admin:ephemeral_state_entry_{name}", args=args)
    for tail in ("add/", "1/change/", "1/delete/", "1/"):
        assert admin_client.get(URL + tail).status_code == 404


# What they see


def test_every_column_is_shown(viewer):
    api.set("room:1", "typing", {"name": "Zoé"}, client="specific.ann!1", namespace="acme", ttl=65)
    api.set("room:1", "typing", b"", client="bob")
    assert rows(page(viewer)) == [
        ["-", "room:1", "typing", "-", "1 min 0 s", "bob"],
        ["acme", "room:1", "typing", '{"name":"Zoé"}', "1 min 5 s", "specific.ann!1"],
    ]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ("plain", "plain"),
        ([1, None, "ü"], '[1,null,"ü"]'),
        ('{"a": [1,\n 2]}', '{"a": [1,\\n 2]}'),
        ('"\\ud800"', '"\\ud800"'),
        (b"\xff\x00\xfe", "hex ff 00 fe"),
        (b"\x00" * 3 + b"\xff", "hex 00 00 00 ff"),
        ("1" * 5000, "1" * 160 + "…"),
        ("[" * 5000, "[" * 160 + "…"),
        (b"\xff" * 5000, "hex " + " ".join(["ff"] * 53) + "…"),
        ("x" * 160, "x" * 160),
    ],
)
def test_payloads_are_shown_as_they_were_written_and_cut(viewer, payload, shown):
    api.set("room", "k", payload)
    html = page(viewer)
    assert rows(html)[0][3] == shown
    assert f'title="{len(live("room")["k"].payload)} bytes"' in html


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(5, "5.0 s"), (0.05, "0.0 s"), (59.999, "59.9 s"), (60, "1 min 0 s"), (1800, "30 min 0 s")],
)
def test_the_time_left_is_rounded_down(viewer, seconds, shown):
    api.set("room", "k", ttl=seconds)
    assert rows(page(viewer))[0][4] == shown


def test_what_has_expired_is_not_shown(viewer, clock):
    api.set("room", "k", ttl=5)
    clock.advance(5)
    assert "0 live entries" in page(viewer)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_shown_as_text_wherever_it_stands(clearer, text):
    api.set(text, text, text, client=text, namespace=text)
    listed = page(clearer)
    asked = clear(clearer, *tokens(listed), post="").content.decode()
    for html in (listed, asked):
        assert not [raw for raw in ("\x00", "\x1b", "\u202e") if raw in html]
        assert len(html) < 60_000
    searched = page(clearer, q=text[:50], topic=text, namespace=text)
    for html in (listed, asked, searched):
        assert not [raw for raw in ("<script>alert", "<img src=x", "for tests only") if raw in html]
    (row,) = rows(page(clearer))
    shown = admin.printable(text, 80)
    assert row == [shown, shown, shown, admin.printable(text, 160), "1 min 0 s", shown]
    assert "cleared" in notices(clear(clearer, *tokens(page(clearer))))[0].lower()
    assert live(text, text) == {}


def test_invisible_characters_are_escaped_and_letters_of_all_scripts_are_not():
    assert admin.printable("a\x00\u202e\u00a0\ud800é\u05d0 b", 80) == r"a\x00\u202e\xa0\ud800é" + "\u05d0 b"


def test_no_query_asks_for_entries(clearer):
    api.set("room", "k", client="ann")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        clear(clearer, *tokens(page(clearer)))
        page(clearer, q="room")
        page(clearer, "/admin/")
    assert len(queries) > 0
    assert not [query["sql"] for query in queries if "ephemeral_state_entry" in query["sql"]]


def test_the_column_of_namespaces_is_there_where_any_entry_has_one(viewer):
    api.set("room", "k")
    hidden = 'class="ephemeral-stack ephemeral-unnamed"'
    assert hidden in page(viewer)
    assert "Namespace" not in page(viewer, URL + "overview/")
    api.set("room", "k", namespace="acme")
    assert hidden not in page(viewer)
    assert hidden in page(viewer, namespace="")
    assert hidden not in page(viewer, URL + "live/", namespace="acme")
    overview = page(viewer, URL + "overview/")
    assert "Namespace" in overview
    assert "<bdi>acme</bdi> &rsaquo; <bdi>room</bdi> &rsaquo; <bdi>k</bdi>" in overview


def test_a_long_name_of_an_owner_is_shown_short_and_is_all_there(viewer):
    for owner, parts in {
        "specific.inmemory!abcdefghijkl": ("specific.inmemory!abcd", "efghijkl"),
        "hold:0123456789abcdef": ("hold:01234567", "89abcdef"),
        "a name of 16 is.": None,
    }.items():
        api.set("room", "k", client=owner)
        html = page(viewer, q="room")
        assert rows(html)[0][5] == owner
        assert re.findall(r'title="([^"]*)"><span>([^<]*)</span><span>([^<]*)</span></bdi>', html) == (
            [(owner, *parts)] if parts else []
        )


# Finding


@pytest.fixture
def _three():
    api.set("room:1", "typing", client="ann")
    api.set("room:1", "typing", client="bob", namespace="acme")
    api.set("room:2", "cursor", client="Carol", namespace="acme")


@pytest.mark.usefixtures("_three")
@pytest.mark.parametrize(
    ("query", "owners"),
    [
        ({}, ["ann", "bob", "Carol"]),
        ({"namespace": ""}, ["ann"]),
        ({"namespace": "acme"}, ["bob", "Carol"]),
        ({"topic": "room:1"}, ["ann", "bob"]),
        ({"namespace": "acme", "topic": "room:1"}, ["bob"]),
        ({"q": "ROOM:2"}, ["Carol"]),
        ({"q": "curs"}, ["Carol"]),
        ({"q": "carol"}, ["Carol"]),
        ({"q": "typing", "namespace": "acme"}, ["bob"]),
    ],
)
def test_searching_and_filtering_narrow_the_list(viewer, query, owners):
    assert [row[5] for row in rows(page(viewer, **query))] == owners


@pytest.mark.usefixtures("_three")
def test_a_click_on_a_topic_filters_by_it_and_a_click_clears_the_filter(viewer):
    html = page(viewer)
    assert "Clear all filters" not in html
    link = unescape(re.findall(r'class="field-topic"[^>]*><a href="([^"]*)"', html)[1])
    html = page(viewer, URL + link)
    assert [row[5] for row in rows(html)] == ["bob"]
    assert '<a href="?">&#10006; Clear all filters</a>' in html
    (all_topics,) = [link for link in re.findall(r'<li><a href="([^"]*)">All', html) if "topic" not in link]
    assert [row[5] for row in rows(page(viewer, URL + unescape(all_topics)))] == ["bob", "Carol"]


@pytest.mark.usefixtures("_three")
def test_a_search_keeps_the_filters(viewer):
    html = page(viewer, namespace="", topic="a<b")
    assert '<input type="hidden" name="namespace" value="">' in html
    assert '<input type="hidden" name="topic" value="a&lt;b">' in html


def test_a_search_without_a_match_says_so(viewer):
    assert "0 live entries" in page(viewer, q="nobody")


# Pages


def next_page(html):
    link = re.search(r'<a href="([^"]*)" rel="next">', html)
    return unescape(link[1]) if link else None


def test_all_pages_together_hold_every_entry_once(viewer):
    expected = [f"k{n:03}" for n in range(250)]
    for key in expected:
        api.set("room", key)
    html = page(viewer, topic="room")
    assert "First page" not in html
    seen, sizes = keys(html), [len(keys(html))]
    while link := next_page(html):
        html = page(viewer, URL + link)
        seen += keys(html)
        sizes.append(len(keys(html)))
        assert '<a href="?topic=room">First page</a>' in html
    assert seen == expected
    assert sizes == [100, 100, 50]


def test_a_cursor_too_long_for_an_address_is_posted(viewer):
    for number in range(101):
        api.set("\x01" * 1024, f"{number:03}" + "\x01" * 1000)
    html = page(viewer, q="\x01")
    assert next_page(html) is None
    cursor = unescape(re.search(r'name="cursor" value="([^"]*)"', html)[1])
    response = viewer.post(URL + "?q=%01", {"cursor": cursor})
    assert [key[:3] for key in keys(response.content.decode())] == ["100"]


@pytest.mark.parametrize("cursor", ["garbage", "[]", "\x00", "é", "W10=", "bnVsbA==", "x" * 5000])
def test_a_foreign_cursor_leads_to_the_first_page(viewer, cursor):
    api.set("room", "k")
    for response in (
        viewer.get(URL, {"cursor": cursor, "topic": "room"}, follow=True),
        viewer.post(URL + "?topic=room", {"cursor": cursor}, follow=True),
    ):
        assert response.redirect_chain == [("?topic=room", 302)]
        assert notices(response) == ["There is no such page any more; this is the first."]
        assert keys(response.content.decode()) == ["k"]


def test_an_empty_page_that_is_not_the_last_leads_on(viewer, monkeypatch):
    async def nothing(**_):
        return Page((), "further")

    monkeypatch.setattr(api, "abrowse", nothing)
    html = page(viewer, q="rare")
    assert "Nothing found so far" in html
    assert next_page(html) == "?q=rare&cursor=further"


# Clearing


def test_clearing_asks_first_and_then_clears_what_was_selected(clearer):
    for key in ("a", "b", "c"):
        api.set("room", key, client="ann")
    selected = tokens(page(clearer, topic="room"))[:2]
    asked = clear(clearer, *selected, url=URL + "?topic=room", post="")
    assert "Are you sure" in asked.content.decode()
    assert set(live("room")) == {"a", "b", "c"}
    assert tokens(asked.content.decode()) == selected
    done = clear(clearer, *tokens(asked.content.decode()), url=URL + "?topic=room")
    assert done.redirect_chain == [(URL + "?topic=room", 302)]
    assert notices(done) == ["Cleared 2 live entries."]
    assert set(live("room")) == {"c"}


def test_entries_are_told_apart_by_all_of_their_identity(clearer):
    api.set("b:c", "k", client="ann", namespace="a")
    api.set("c", "k", client="ann", namespace="a:b")
    html = page(clearer)
    assert notices(clear(clearer, tokens(html)[0])) == ["Cleared 1 live entry."]
    assert (set(live("b:c", "a")), set(live("c", "a:b"))) == (set(), {"k"})


def test_what_a_successor_has_set_meanwhile_stays(clearer):
    api.set("room", "k", "old", client="ann")
    (token,) = tokens(page(clearer))
    api.set("room", "k", "new", client="bob")
    clear(clearer, token)
    assert live("room")["k"].payload == b"new"


def test_clearing_what_is_gone_already_is_no_error(clearer):
    api.set("room", "k", client="ann")
    (token,) = tokens(page(clearer))
    api.clear("room", "k")
    assert notices(clear(clearer, token)) == ["1 was gone or taken over already."]
    assert not LogEntry.objects.exists()


def test_only_what_was_cleared_counts_and_is_logged(clearer):
    for key in ("a", "b", "c"):
        api.set("room", key, client="ann")
    selected = tokens(page(clearer))
    api.clear("room", "a")
    api.set("room", "b", "new", client="bob")
    assert notices(clear(clearer, *selected)) == ["Cleared 1 live entry.", "2 were gone or taken over already."]
    assert set(live("room")) == {"b"}
    assert LogEntry.objects.get().object_repr == "room › c, set by ann"


@pytest.mark.parametrize("action", ["", "delete_selected", "no_such"])
def test_other_actions_do_nothing(clearer, action):
    api.set("room", "k", client="ann")
    assert notices(clear(clearer, *tokens(page(clearer)), action=action)) == ["No action selected."]
    assert set(live("room")) == {"k"}


def test_selecting_nothing_is_told(clearer):
    assert notices(clear(clearer))[0].startswith("Items must be selected")


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "garbage",
        "é\x00",
        "a:b:c",
        # With ids, or their names would have the time they were signed at.
        pytest.param(signing.dumps(["", "room", "k", "ann"]), id="signed for something else"),
        pytest.param(signing.dumps(["room", "k"], salt="ephemeral_state.admin"), id="too short"),
        pytest.param(signing.dumps(5, salt="ephemeral_state.admin"), id="a number"),
    ],
)
@pytest.mark.parametrize("post", ["yes", ""])
def test_a_selection_that_is_garbage_changes_nothing(clearer, garbage, post):
    api.set("room", "k", client="ann")
    (good,) = tokens(page(clearer))
    for selected in ([garbage], [good, garbage]):
        response = clear(clearer, *selected, post=post)
        assert response.status_code == 200
        assert notices(response) == [
            "The selection cannot be read; nothing was cleared. Please select the entries again."
        ]
    assert set(live("room")) == {"k"}


# When the store is away


def test_a_store_that_does_not_answer_is_told_on_the_page(clearer, settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Deaf"}
    html = page(clearer, status=503)
    assert "The store cannot be read: no answer from &lt;redis&gt; within 2 s" in html
    assert "Live entries" in html
    assert "0 live entries" not in html


def test_a_store_that_cannot_be_made_is_told_on_the_page(clearer, settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "no.such.Store"}
    assert "no.such.Store" in page(clearer, status=503)


def test_what_could_not_be_cleared_is_counted(clearer, settings):
    for key in ("a", "b", "c"):
        api.set("room", key, client="ann")
    selected = tokens(page(clearer))
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.DownStore"}
    reason = "no answer from <redis> within 2 s"
    assert notices(clear(clearer, *selected)) == [f"Failed to clear 3 live entries: {reason}"]


class Failing(MemoryStore):
    """Clears what has an `a` in its key, and nothing else; counts its batches."""

    def __init__(self, limits):
        super().__init__(limits)
        self.batches = 0

    async def apply(self, writes, batches=None):
        self.batches += 1
        fault = Outcome((), StoreUnavailable("no answer"))
        outcomes = []
        for write in writes:
            refused = isinstance(write, Clear) and "a" not in write.key
            outcomes += [fault] if refused else await super().apply([write])
        return outcomes


def test_what_was_cleared_is_logged_though_others_could_not_be(clearer, settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Failing"}
    for key in ("a", "b", "c", "za"):
        api.set("room", key, client="ann")
    assert notices(clear(clearer, *tokens(page(clearer)))) == [
        "Cleared 2 live entries.",
        "Failed to clear 2 live entries: no answer",
    ]
    assert set(live("room")) == {"b", "c"}
    assert set(LogEntry.objects.values_list("object_repr", flat=True)) == {
        "room › a, set by ann",
        "room › za, set by ann",
    }


def test_a_missing_channel_layer_is_told(clearer, settings):
    api.set("room", "k", client="ann")
    selected = tokens(page(clearer))
    settings.CHANNEL_LAYERS = {}
    settings.EPHEMERAL_STATE = {}
    (notice,) = notices(clear(clearer, *selected))
    assert "CHANNEL_LAYERS has no 'default'" in notice


@pytest.mark.redis
def test_on_redis_it_is_the_same_and_a_frozen_redis_is_told_on_the_page(clearer, settings):
    with RedisServer() as redis:
        backend = "ephemeral_state.stores.redis.RedisStore"
        settings.EPHEMERAL_STATE = {"BACKEND": backend, "OPTIONS": {"url": redis.url, "timeout": 0.5}}
        expected = {(f"room:{n % 3}", f"k{n}\x00é") for n in range(120)}
        for topic, key in expected:
            api.set(topic, key, b"\xff", client="ann")
        html = page(clearer)
        first = tokens(html)
        seen = [(row[1], row[2]) for row in rows(html)]
        while link := next_page(html):
            html = page(clearer, URL + link)
            seen += [(row[1], row[2]) for row in rows(html)]
        assert sorted(seen) == sorted((topic, key.replace("\x00", "\\x00")) for topic, key in expected)
        assert keys(page(clearer, q="K119")) == ["k119\\x00é"]

        redis.stop()
        assert "The store cannot be read: " in page(clearer, status=503)
        (notice,) = notices(clear(clearer, *first))
        assert notice.startswith(f"Failed to clear {len(first)} live entries: ")
        redis.cont()

        assert notices(clear(clearer, *first)) == [f"Cleared {len(first)} live entries."]
        assert len(rows(page(clearer))) == len(expected) - len(first)


# While the process serves sockets


@pytest.mark.usefixtures("threaded_db")
async def test_a_socket_of_the_same_process_sees_the_clear():
    user = await User.objects.acreate(username="root", is_staff=True, is_superuser=True)
    client = AsyncClient()
    await sync_to_async(client.force_login)(user)
    socket = WebsocketCommunicator(Room.as_asgi(), "/")
    await socket.connect()
    for _ in range(2):
        await socket.receive_json_from()

    html = (await client.get(URL)).content.decode()
    assert rows(html)[0][1:5] == ["room", "here", '{"name":"Ann"}', "until disconnect"]
    response = await client.post(URL, {"action": "clear_selected", "_selected_action": tokens(html), "post": "yes"})
    assert response.status_code == 302

    frame = await socket.receive_json_from()
    assert (frame["_orama"], frame["key"], frame["reason"]) == ("ephemeral.clear", "here", "explicit")
    assert frame["client_id"] == rows(html)[0][5]
    assert live("room") == {}
    await socket.disconnect()


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_a_socket_of_a_real_server_is_found_by_the_admin_and_sees_the_clear(tmp_path, server):
    topic = "demo:admin"
    with DemoProcess(tmp_path, "--server", server) as demo:
        async with (
            connect(f"ws://127.0.0.1:{demo.port}/ws/state/", origin=demo.url) as socket,
            httpx.AsyncClient(base_url=demo.url, follow_redirects=True) as browser,
        ):
            for command in (
                {"_orama": "ephemeral.subscribe", "topic": topic},
                {"_orama": "ephemeral.set", "topic": topic, "key": "k", "payload": "aGVsbG8="},
            ):
                await socket.send(json.dumps(command))
            frames = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in range(4)]
            owner = next(frame["client_id"] for frame in frames if frame["_orama"] == "ephemeral.set")

            await browser.get("/admin/login/")
            login = {"username": demo.printed("Username"), "password": demo.printed("Password"), "next": URL}
            await browser.post("/admin/login/", data=login | {"csrfmiddlewaretoken": browser.cookies["csrftoken"]})
            html = (await browser.get(URL, params={"topic": topic})).text
            assert [row[:4] + row[5:] for row in rows(html)] == [["-", topic, "k", "hello", owner]]

            selected = {"action": "clear_selected", "_selected_action": tokens(html), "post": "yes"}
            done = await browser.post(URL, data=selected | {"csrfmiddlewaretoken": browser.cookies["csrftoken"]})
            assert "Cleared 1 live entry." in done.text
            frame = json.loads(await asyncio.wait_for(socket.recv(), 10))
            assert frame == {
                "_orama": "ephemeral.clear",
                "topic": topic,
                "key": "k",
                "client_id": owner,
                "reason": "explicit",
            }


# Live


def test_the_live_part_is_the_same_rows_and_304_while_only_time_passes(clearer, clock, monkeypatch):
    now = 1_700_000_000.0
    # The store's clock stands still, and so a deadline would move with that of the machine.
    monkeypatch.setattr(reading, "time", SimpleNamespace(time=lambda: now))
    api.set("room", "k", {"n": 1}, client="ann", ttl=60)
    first = clearer.get(URL + "live/", {"topic": "room"})
    assert rows(first.content.decode()) == rows(page(clearer, topic="room"))
    assert "<html" not in first.content.decode()
    mark = first.headers["ETag"]
    assert clearer.get(URL + "live/", {"topic": "room"}, headers={"If-None-Match": mark}).status_code == 304
    clock.advance(30)
    now += 30
    assert clearer.get(URL + "live/", {"topic": "room"}, headers={"If-None-Match": mark}).status_code == 304
    api.set("room", "k", {"n": 2}, client="ann", ttl=60)
    changed = clearer.get(URL + "live/", {"topic": "room"}, headers={"If-None-Match": mark})
    assert (changed.status_code, rows(changed.content.decode())[0][3]) == (200, '{"n":2}')
    assert clearer.get(URL + "live/", {"cursor": "garbage"}).status_code == 410


def test_the_live_part_changes_with_the_owner_though_the_value_is_the_same(clearer):
    api.set("room", "k", "v", client="ann", ttl=60)
    mark = clearer.get(URL + "live/").headers["ETag"]
    api.set("room", "k", "v", client="bob", ttl=60)
    changed = clearer.get(URL + "live/", headers={"If-None-Match": mark})
    assert changed.status_code == 200
    assert notices(clear(clearer, *tokens(changed.content.decode()))) == ["Cleared 1 live entry."]


@pytest.mark.django_db
def test_every_page_takes_the_view_permission():
    api.set("room", "k", client="ann")
    client = logged_in("delete_entry", "clear_topic", "disconnect_client")
    for tail in ("live/", "overview/", "overview/?live=1", "entry/?id=" + Identity("", "room", "k", "ann").token()):
        assert client.get(URL + tail).status_code == 403
        assert Client().get(URL + tail).status_code == 302


def test_a_store_that_does_not_answer_is_told_on_every_page(clearer, settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Mute"}
    for tail in ("", "live/", "overview/", "entry/?id=" + Identity("", "room", "k", "ann").token()):
        response = clearer.get(URL + tail)
        assert response.status_code == 503
        assert "no answer from" in response.content.decode()


class Mute(Deaf):
    async def entry(self, topic, key):
        raise StoreUnavailable("no answer from <redis> within 2 s")

    async def topics(self, **_):
        raise StoreUnavailable("no answer from <redis> within 2 s")


@pytest.fixture
def _owned():
    """What two connections own, one of a user, and what nobody's connection does."""
    reports = Report("n1", {}, came={"ann": json.dumps({"user": "Zoé <b>", "since": time.time() - 70}), "bob": "{}"})
    api.set("room", "a", client="ann", ttl=60)
    api.set("room", "b", client="bob", ttl=30)
    asyncio.run(get_store().report(reports))


@pytest.mark.usefixtures("_owned")
def test_owners_are_shown_with_their_user_and_age_and_the_list_is_filtered_by_them(viewer):
    html = page(viewer)
    assert re.findall(r'field-user"[^>]*>(?:<a [^>]*>)?<bdi>(.*?)</bdi>', html) == ["Zoé &lt;b&gt;", ""]
    assert re.search(r'field-age" role="cell" data-label="Age"><span data-age="7\d" data-ticks>1 min<', html)
    assert keys(page(viewer, user="Zoé <b>")) == ["a"]
    assert keys(page(viewer, process="n1")) == ["a", "b"]
    assert "0 live entries" in page(viewer, process="n2")
    assert keys(page(viewer, lifetime="deadline")) == ["a", "b"]
    assert "0 live entries" in page(viewer, lifetime="connection")


@pytest.mark.usefixtures("_owned")
@pytest.mark.parametrize(
    ("order", "expected"),
    [("key", ["a", "b"]), ("-key", ["b", "a"]), ("time_left", ["b", "a"]), ("-user", ["a", "b"]), ("no", ["a", "b"])],
)
def test_a_page_is_sorted_by_any_column(viewer, order, expected):
    assert keys(page(viewer, o=order)) == expected


# One entry


def entry(client, /, *identity, **data):
    url = f"{URL}entry/?{urlencode({'id': Identity(*identity).token()})}"
    return client.post(url, data, follow=True) if data else client.get(url, follow=True)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_page_of_an_entry_shows_hostile_text_as_text(clearer, text):
    api.set(text, text, {text[:2000]: [text[:2000]]}, client=text, namespace=text)
    html = entry(clearer, text, text, text, text).content.decode()
    assert not [raw for raw in ("<script>", "<img src=x", "for tests only", "\x00", "\u202e") if raw in html]
    assert "JSON" in html


@pytest.mark.parametrize(
    ("payload", "kind", "shown"),
    [
        ({"a": [1]}, "JSON", "{\n  &quot;a&quot;: [\n    1\n  ]\n}"),
        ("plain\nlines", "text", "plain\nlines"),
        (bytes([255]) * 20, "bytes", "0000  " + " ".join(["ff"] * 16) + "\n0010  ff ff ff ff"),
        ("[" * 3000, "text", "Show all"),
    ],
)
def test_payloads_are_spread_out_by_what_they_are(viewer, payload, kind, shown):
    api.set("room", "k", payload, client="ann")
    html = entry(viewer, "", "room", "k", "ann").content.decode()
    assert f"bytes, {kind}" in html
    assert shown in html


def test_the_page_of_an_entry_tells_its_last_transitions_also_when_it_is_gone(viewer):
    api.set("room", "k", client="ann")
    api.set("room", "k", client="bob")
    html = entry(viewer, "", "room", "k", "ann").content.decode()
    assert re.search(r"Owner</th><td><bdi>bob</bdi>", html)
    api.clear("room", "k")
    html = entry(viewer, "", "room", "k", "ann").content.decode()
    assert "This entry is gone: explicit." in html
    assert re.findall(r"kind-(\w+)\"", html) == ["explicit", "set", "set"]
    assert re.findall(r"<td [^>]*><bdi>(ann|bob)</bdi></td>", html) == ["bob", "bob", "ann"]
    assert re.findall(r">([a-z: ]+)</span>(?: from <bdi>(\w+)</bdi>)?</td>", html) == [
        ("cleared: explicit", ""),
        ("taken over", "ann"),
        ("set", ""),
    ]
    api.set("room", "k", client="cid")  # of a key that was cleared, nobody is deprived
    html = entry(viewer, "", "room", "k", "ann").content.decode()
    assert html.count("taken over") == 1


class NoTopics(MemoryStore):
    async def snapshot(self, topic):
        raise AssertionError("a whole topic was read")


def test_for_the_page_of_an_entry_its_topic_is_not_read(viewer, settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.NoTopics"}
    api.set("room", "k", "v", client="ann")
    assert "bytes, text" in entry(viewer, "", "room", "k", "ann").content.decode()


def test_a_link_that_is_garbage_leads_back_to_the_list(viewer):
    response = viewer.get(URL + "entry/", {"id": "garbage"}, follow=True)
    assert response.redirect_chain == [(URL, 302)]
    assert notices(response) == ["There is no such entry."]


# Acts


@pytest.mark.django_db
def test_clearing_a_topic_asks_first_and_is_logged():
    client = logged_in("view_entry", "clear_topic")
    for key in ("a", "b"):
        api.set("room", key, client="ann", namespace="n")
    api.set("other", "c", client="ann", namespace="n")
    url = URL + "?namespace=n&topic=room"
    assert "Clear this whole topic" in page(client, url)
    assert "Clear this whole topic" not in page(client, URL + "?topic=room")
    asked = client.post(url, {"action": "clear_topic"})
    assert "clear all 2 live entries" in asked.content.decode()
    assert len(live("room", "n")) == 2
    done = client.post(url, {"action": "clear_topic", "post": "yes"}, follow=True)
    assert notices(done) == ["Cleared 2 live entries."]
    assert (live("room", "n"), set(live("other", "n"))) == ({}, {"c"})
    assert list(LogEntry.objects.values_list("object_repr", "change_message", "user__username")) == [
        ("n › room", "Cleared 2 live entries of the topic.", "staff-view_entry-clear_topic"),
    ]
    again = client.post(url, {"action": "clear_topic", "post": "yes"}, follow=True)
    assert notices(again) == ["There was nothing to clear."]
    assert LogEntry.objects.count() == 1
    assert client.post(URL, {"action": "clear_topic", "post": "yes"}).status_code == 403


@pytest.mark.django_db
def test_a_large_topic_is_cleared_in_a_few_batches_and_what_was_is_logged_though_the_rest_fails(settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Failing", "MAX_KEYS_PER_CLIENT": 1000}
    client = logged_in("view_entry", "clear_topic")

    async def fill():
        keys = [f"a{n:03}" for n in range(600)] + ["b0", "b1"]
        await get_store().apply([Set("ann", Topic("", "room"), key, b"", 60_000) for key in keys])
        get_store().batches = 0

    asyncio.run(fill())
    url = URL + "?namespace=&topic=room"
    asked = client.post(url, {"action": "clear_topic"}).content.decode()
    assert "clear all 602 live entries" in asked
    assert asked.count("set by") == 100
    assert get_store().batches == 0
    done = client.post(url, {"action": "clear_topic", "post": "yes"}, follow=True)
    assert notices(done) == ["Cleared 600 live entries.", "Failed to clear the whole topic: no answer"]
    assert set(live("room")) == {"b0", "b1"}
    assert get_store().batches == 2
    assert LogEntry.objects.get().change_message == "Cleared 600 live entries of the topic."


@pytest.mark.django_db
def test_a_topic_that_cannot_be_read_is_told(settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Mute"}
    client = logged_in("view_entry", "clear_topic")
    for post, told in (("", "Failed to read the topic"), ("yes", "Failed to clear the whole topic")):
        data = {"action": "clear_topic", "post": post}
        response = client.post(URL + "?namespace=&topic=room", data, follow=True)
        assert notices(response) == [f"{told}: no answer from <redis> within 2 s"]


@pytest.mark.django_db
def test_disconnecting_asks_first_and_is_logged_and_clears_everywhere():
    client = logged_in("view_entry", "disconnect_client")
    api.set("room", "a", client="ann")
    api.set("other", "b", client="ann")
    who = {"action": "disconnect", "client": Identity("", "room", "a", "ann").token()}
    for code in ("", "x", "1001", "5000"):
        assert "Nobody was disconnected" in notices(entry(client, "", "room", "a", "ann", **who, code=code))[0]
    assert "code 4001" in entry(client, "", "room", "a", "ann", **who, code="4001").content.decode()
    assert len(live("room")) == len(live("other")) == 1
    done = entry(client, "", "room", "a", "ann", **who, code="4001", post="yes")
    assert notices(done) == ["Disconnected ann."]
    assert live("room") == live("other") == {}
    assert LogEntry.objects.get().change_message == "Disconnected, with the code 4001."


@pytest.mark.django_db
def test_disconnecting_says_and_logs_what_was_cleared_though_the_socket_could_not_be_closed(settings):
    layer = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1}}
    settings.CHANNEL_LAYERS = {"default": layer}
    settings.EPHEMERAL_STATE = {}
    client = logged_in("view_entry", "disconnect_client")
    api.set("room", "a", client="specific.a!1")
    who = Identity("", "room", "a", "specific.a!1")
    asyncio.run(get_channel_layer().send(who.owner, {"type": "first"}))  # and there is no room for another
    done = entry(client, *who, action="disconnect", client=who.token(), code="4001", post="yes")
    said = "could not be closed: the message was not taken by the channel layer 'default' (ChannelFull): try again"
    assert notices(done) == [f"All that specific.a!1 owned is cleared, but its socket {said}"]
    assert live("room") == {}
    logged = LogEntry.objects.get()
    assert logged.object_repr == "specific.a!1"
    assert logged.change_message == f"Cleared; the socket {said}."


@pytest.mark.django_db
def test_disconnecting_says_that_nothing_was_done_if_the_store_is_away(settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.DownStore"}
    client = logged_in("view_entry", "disconnect_client")
    who = Identity("", "room", "a", "ann")
    done = entry(client, *who, action="disconnect", client=who.token(), code="4001", post="yes")
    assert notices(done) == ["Failed to disconnect ann: no answer from <redis> within 2 s"]
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("action", ["clear_selected", "clear_topic", "disconnect"])
def test_each_act_takes_its_own_permission(action):
    needed = {"clear_selected": "delete_entry", "clear_topic": "clear_topic", "disconnect": "disconnect_client"}
    others = [codename for act, codename in needed.items() if act != action]
    client = logged_in("view_entry", *others)
    api.set("room", "k", client="ann")
    token = Identity("", "room", "k", "ann").token()
    data = {"action": action, "post": "yes", "_selected_action": token, "client": token, "code": "4000"}
    assert client.post(URL + "?namespace=&topic=room", data).status_code == 403
    assert entry(client, "", "room", "k", "ann", **data).status_code == 403
    assert set(live("room")) == {"k"}
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_the_part_of_each_page_that_changes_is_had_alone_and_a_store_that_is_away_is_told(viewer, settings):
    api.set("room", "k", client="ann")
    one = f"{URL}entry/?{urlencode({'id': Identity('', 'room', 'k', 'ann').token()})}"
    urls = [URL + "live/", one + "&live=1", URL + "overview/?live=1"]
    assert f'data-live="{one.removeprefix(URL + "entry/")}&amp;live=1"' in page(viewer, one)
    for url in urls:
        html = page(viewer, url)
        assert "room" in html
        assert "<html" not in html
    api.clear("room", "k")
    assert "This entry is gone: explicit." in page(viewer, urls[1])
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_admin.Away"}
    for url in urls:
        assert page(viewer, url, 503) == "the store cannot be read: no answer from <redis> within 2 s"
    for url in (URL, one, URL + "overview/"):  # and the page goes on asking
        html = page(viewer, url, 503)
        assert "The store cannot be read: no answer from &lt;redis&gt; within 2 s" in html
        assert "data-live=" in html


# The overview


def test_the_overview_counts_and_draws(viewer):
    for n in range(12):
        api.set(f"room{n % 3}", f"{n}", client="ann")
    api.clear("room0", "0")
    html = page(viewer, URL + "overview/")
    numbers = re.findall(r'<span class="number">([^<]*)</span> (\w+)', html)
    assert numbers == [("11", "Entries"), ("0", "Connections"), ("3", "Topics"), ("1", "Processes")]
    assert "<title>0 min ago: 12 set</title>" in html
    assert "<title>0 min ago: 1 explicit</title>" in html
    assert "known to this process only" in html
    assert html.count('<span class="ephemeral-kind kind-') == 13
    assert "<html" not in page(viewer, URL + "overview/?live=1")


# A full store


PAGES = ("", "live/", "?q=k099", "?topic=t1999", "?lifetime=connection", "overview/", "?namespace=n&topic=t0007")


@pytest.mark.redis
@pytest.mark.django_db
def test_pages_stay_fast_and_redis_is_never_blocked_with_100_000_entries(settings):
    with RedisServer() as server:
        client = logged_in("view_entry", "delete_entry")

        def use(prefix):
            settings.EPHEMERAL_STATE = {
                "BACKEND": "ephemeral_state.stores.redis.RedisStore",
                "OPTIONS": {"url": server.url, "prefix": prefix, "timeout": 30},
                "MAX_KEYS_PER_CLIENT": 1000,
            }

        async def fill(number):
            store = get_store()
            for start in range(0, number, 250):
                writes = [
                    Set(f"c{n % 997}", Topic("n", f"t{n % 2000:04}"), f"k{n:06}", b"x" * 50, ttl_ms=1_800_000)
                    for n in range(start, min(start + 250, number))
                ]
                await store.apply(writes)
            await store.close()

        for prefix, number in (("few", 100), ("many", 100_000)):
            use(prefix)
            asyncio.run(fill(number))

        def get(url):
            response = client.get(URL + url)
            assert response.status_code == 200
            return response.content.decode()

        # The best of several, taken in turns: what others do on this machine only adds to it, and to both.
        best = {"few": float("inf"), "many": float("inf")}
        for _ in range(7):
            for prefix in best:
                use(prefix)
                get("")
                start = time.perf_counter()
                get("")
                best[prefix] = min(best[prefix], (time.perf_counter() - start) * 1000)
        print(f"first page: {best['few']:.1f} ms with 100 entries, {best['many']:.1f} ms with 100 000")
        assert best["many"] <= 2 * best["few"]

        # What Redis calls slow counts the time that others had the processor. What is slow by itself is so each time.
        server.command("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
        slow_each_time = None
        for _ in range(8):
            server.command("SLOWLOG", "RESET")
            pages = [get(url) for url in PAGES]
            slow = {tuple(command) for _, _, _, command, *_ in server.command("SLOWLOG", "GET", 1000)}
            slow_each_time = slow if slow_each_time is None else slow_each_time & slow
            if not slow_each_time:
                break
        assert not slow_each_time
        overview = pages[PAGES.index("overview/")]
        assert '<span class="number">100000</span> Entries' in overview
        assert '<span class="number">2000</span> Topics' in overview
