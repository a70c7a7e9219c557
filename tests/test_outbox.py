import pytest

from ephemeral_state.outbox import Outbox
from ephemeral_state.protocol import Event, encode_event
from ephemeral_state.state import Revision


def set_event(key, text, fresh=False):
    return Event(key, "c", b"", None, 1000, text, Revision(0, 0), fresh)


def clear_event(key):
    return Event(key, "c", b"", "explicit", 0, f"clear {key}", Revision(0, 0))


def drained(outbox):
    texts = []
    while outbox:
        texts.append(outbox.pop().text)
    return texts


def test_the_newest_value_of_a_key_replaces_the_one_that_waits():
    outbox = Outbox()
    outbox.add([set_event("a", "1"), set_event("b", "2"), set_event("a", "3")])
    assert drained(outbox) == ["3", "2"]


def test_a_clear_of_a_known_key_is_never_lost():
    outbox = Outbox()
    outbox.add([set_event("a", "1"), clear_event("a")])
    assert drained(outbox) == ["clear a"]


def test_a_key_that_came_and_went_is_never_mentioned():
    outbox = Outbox()
    outbox.add([set_event("a", "1", fresh=True), set_event("a", "2"), clear_event("a")])
    assert not outbox


def test_a_key_that_went_and_came_back_is_still_known():
    outbox = Outbox()
    outbox.add([clear_event("a"), set_event("a", "1", fresh=True), clear_event("a")])
    assert drained(outbox) == ["clear a"]


def test_what_waits_is_bounded_by_live_keys_however_long_it_lasts():
    outbox = Outbox()
    for n in range(10_000):
        outbox.add([set_event(f"{n}", "1", fresh=True), set_event("cursor", "2"), clear_event(f"{n}")])
    assert len(outbox) == 1


def test_an_empty_outbox_says_so():
    with pytest.raises(KeyError, match="empty"):
        Outbox().pop()


def test_what_has_no_text_yet_is_as_long_as_it_will_be():
    box = Outbox()
    clears = [Event(f"key {n:04}", "client", b"", "disconnect", 0, "", Revision(0, 0)) for n in range(1_000)]
    box.add(clears)
    some = box.pop_some(10_000)
    assert sum(len(encode_event("t", event)) for event in some) < 11_000
    assert 50 < len(some) < 200
