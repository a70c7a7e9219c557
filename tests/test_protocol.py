import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephemeral_state import errors
from ephemeral_state.protocol import (
    Batch,
    Command,
    as_batches,
    decode_batch,
    decode_command,
    encode_batches,
    encode_change,
    encode_error,
    encode_event,
    encode_hello,
    encode_ok,
    encode_payload,
    encode_snapshot,
    encode_ttl,
    peek_batch,
)
from ephemeral_state.state import UNTIL_DISCONNECT, Change, Entry, Revision, Topic

TOPIC = Topic("n", "room:1")


def change(key="k", payload=b"", reason=None, revision=1, expires_in_ms=1000):
    return Change(TOPIC, key, "c", payload, reason, expires_in_ms, 7, revision)


def command(text):
    return decode_command(text, max_frame_bytes=65_536, max_name_bytes=1024)


def test_a_set_frame_has_exactly_the_fields_of_the_contract_in_order():
    assert encode_change(change(payload=b"x")) == (
        '{"_orama":"ephemeral.set","topic":"room:1","key":"k","client_id":"c","payload":"eA=="}'
    )


def test_an_empty_payload_is_left_out():
    assert encode_change(change()) == '{"_orama":"ephemeral.set","topic":"room:1","key":"k","client_id":"c"}'


@pytest.mark.parametrize("reason", ["explicit", "disconnect", "expired"])
def test_a_clear_frame_says_why(reason):
    assert encode_change(change(reason=reason)) == (
        f'{{"_orama":"ephemeral.clear","topic":"room:1","key":"k","client_id":"c","reason":"{reason}"}}'
    )


def test_a_snapshot_entry_without_a_deadline_expires_in_null():
    entries = [Entry(TOPIC, "a", "c", b"x", None), Entry(TOPIC, "b", "c", b"", 5)]
    assert encode_snapshot("room:1", entries, ref=3) == (
        '{"_orama":"ephemeral.snapshot","topic":"room:1","entries":['
        '{"key":"a","client_id":"c","payload":"eA==","expires_in_ms":null},'
        '{"key":"b","client_id":"c","expires_in_ms":5}],"ref":3}'
    )


def test_a_hello_tells_the_client_who_it_is():
    assert encode_hello('c"1') == '{"_orama":"ephemeral.hello","client_id":"c\\"1"}'
    assert encode_hello("c", 0.0001) == '{"_orama":"ephemeral.hello","client_id":"c","ping_interval_ms":1}'


def test_an_answer_repeats_the_ref_only_if_there_was_one():
    assert encode_ok() == '{"_orama":"ephemeral.ok"}'
    assert encode_ok("r") == '{"_orama":"ephemeral.ok","ref":"r"}'


def test_an_error_that_quotes_a_lone_surrogate_can_still_be_sent():
    text = encode_error(errors.InvalidFrame('_orama "\ud800" is unknown'))
    assert text.encode()
    assert json.loads(text)["code"] == "bad_frame"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"ab")[:1], b"a"),
        ("é", "é".encode()),
        ({"name": "Zoé", "n": 1}, '{"name":"Zoé","n":1}'.encode()),
        ([1, None, True], b"[1,null,true]"),
        (None, b"null"),
        ("", b""),
    ],
)
def test_payloads_are_encoded_once(value, stored):
    assert encode_payload(value) == stored


@pytest.mark.parametrize("value", [object(), {1, 2}, math.nan, math.inf, "\ud800", {"a": object()}])
def test_a_payload_that_json_cannot_express_is_refused_by_name(value):
    with pytest.raises(errors.InvalidPayload, match=type(value).__name__):
        encode_payload(value)


def test_a_payload_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(errors.InvalidPayload, match="list"):
        encode_payload(loop)


@pytest.mark.parametrize(
    ("ttl", "ms"),
    [(None, 0), (5, 5000), (0.25, 250), (0.0001, 1), (0, 0), (-3, 0), (UNTIL_DISCONNECT, None), (10**8, 10**11)],
)
def test_a_ttl_in_seconds_becomes_ms(ttl, ms):
    assert encode_ttl(ttl) == ms


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, "5", True, 10**400, 10**5000, 1e300, []], ids=type)
def test_a_ttl_that_is_no_finite_number_is_refused(ttl):
    with pytest.raises(errors.InvalidTTL, match="ttl"):
        encode_ttl(ttl)


def test_a_command_is_read_with_its_ref():
    frame = '{"_orama":"ephemeral.set","topic":"t","key":"k","payload":"eA==","ttl_ms":250,"ref":"r1"}'
    assert command(frame) == Command("set", "t", "k", b"x", 250, ref="r1")


def test_a_null_ttl_means_until_disconnect_and_a_missing_one_the_default():
    assert command('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":null}').ttl_ms is None
    assert command('{"_orama":"ephemeral.set","topic":"t","key":"k"}').ttl_ms == 0


@pytest.mark.parametrize(
    ("frame", "error", "says"),
    [
        ("", errors.InvalidFrame, "not JSON"),
        ("nonsense", errors.InvalidFrame, "not JSON"),
        ("[" * 100_000, errors.InvalidFrame, "exceeds the limit of 65536"),
        ("[" * 60_000, errors.InvalidFrame, "not JSON"),
        ("[]", errors.InvalidFrame, "array"),
        ("null", errors.InvalidFrame, "null"),
        ("{}", errors.InvalidFrame, "no _orama"),
        ('{"_orama":7}', errors.InvalidFrame, "7 is none of"),
        ('{"_orama":1e999}', errors.InvalidFrame, "inf is none of"),
        ('{"_orama":{"a":[1e999]}}', errors.InvalidFrame, "is none of"),
        ('{"_orama":"ephemeral.nope"}', errors.InvalidFrame, '"ephemeral.nope" is none of'),
        ('{"_orama":"set","topic":"t","key":"k"}', errors.InvalidFrame, "is none of"),
        ('{"_orama":"ephemeral.list"}', errors.InvalidFrame, "no topic"),
        ('{"_orama":"ephemeral.list","topic":5}', errors.InvalidFrame, "topic is a JSON number"),
        ('{"_orama":"ephemeral.list","topic":"t","key":"k"}', errors.InvalidFrame, 'no field "key"'),
        ('{"_orama":"ephemeral.clear","topic":"t"}', errors.InvalidFrame, "no key"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","payload":"e"}', errors.InvalidPayload, "base64"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","payload":"eA"}', errors.InvalidPayload, "padded"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","payload":"é==="}', errors.InvalidPayload, "base64"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","payload":{}}', errors.InvalidPayload, "object"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":"5"}', errors.InvalidTTL, "string"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":true}', errors.InvalidTTL, "boolean"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":1e999}', errors.InvalidTTL, "finite"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":1%s}' % ("0" * 400), errors.InvalidTTL, "finite"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","grace_ms":-1}', errors.InvalidTTL, "grace"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","grace_ms":null}', errors.InvalidTTL, "null"),
        ('{"_orama":"ephemeral.set","topic":"t","key":"k","ttl_ms":NaN}', errors.InvalidFrame, "not JSON"),
        ('{"_orama":"ephemeral.list","topic":"\\ud800"}', errors.NameInvalid, "surrogate"),
        (
            '{"_orama":"ephemeral.list","topic":"%s"}' % ("é" * 513),
            errors.NameInvalid,
            "1026 bytes exceeds the limit of 1024",
        ),
        ('{"_orama":"ephemeral.list","topic":"t","ref":[]}', errors.InvalidFrame, "ref must be"),
        ('{"_orama":"ephemeral.list","topic":"t","ref":"%s"}' % ("r" * 129), errors.InvalidFrame, "128"),
    ],
)
def test_a_bad_frame_is_refused_by_what_is_wrong_with_it(frame, error, says):
    with pytest.raises(error, match=says):
        command(frame)


def test_a_refusal_carries_the_ref_of_its_frame():
    with pytest.raises(errors.InvalidFrame) as caught:
        command('{"_orama":"ephemeral.clear","topic":"t","ref":42}')
    assert caught.value.ref == 42


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_every_frame_is_a_command_or_an_error_that_can_be_sent(text):
    with suppress(errors.EphemeralStateError):
        assert isinstance(command(text), Command)
        return
    try:
        command(text)
    except errors.EphemeralStateError as error:
        answer = encode_error(error)
    assert answer.encode()


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
            st.binary(),
            st.none() | st.integers(0, 2**40),
            st.sampled_from([None, "explicit", "disconnect", "expired"]),
        ),
        min_size=1,
    )
)
def test_what_one_process_encodes_another_reads(items):
    changes = [
        change(key, b"" if reason else payload, reason, revision, expires)
        for revision, (key, payload, expires, reason) in enumerate(items, start=5)
    ]
    (message,) = encode_batches(changes)
    batch = decode_batch(message)
    assert batch == Batch(TOPIC, Revision(7, 5), batch.events)
    assert [(e.key, e.client_id, e.payload, e.reason, e.expires_in_ms) for e in batch.events] == [
        (c.key, c.client_id, c.payload, c.reason, c.expires_in_ms) for c in changes
    ]
    assert [e.text for e in batch.events] == [encode_change(c) for c in changes]


def test_a_large_batch_is_cut_into_messages_with_consecutive_revisions():
    changes = [change(f"k{n}", b"x" * 16_000, revision=n) for n in range(1, 41)]
    messages = encode_batches(changes)
    assert len(messages) > 1
    batches = [decode_batch(message) for message in messages]
    revisions = [b.first.revision + n for b in batches for n in range(len(b.events))]
    assert revisions == list(range(1, 41))
    assert max(sum(map(len, message["frames"])) for message in messages) <= 256 * 1024


def test_a_message_ends_where_another_process_has_written_in_between():
    changes = [change(f"k{n}", b"", revision=n) for n in (1, 2, 4, 5, 9)]
    batches = [decode_batch(message) for message in encode_batches(changes)]
    assert [[event.revision.revision for event in batch.events] for batch in batches] == [[1, 2], [4, 5], [9]]


def test_changes_are_seen_here_as_they_are_by_those_who_get_their_messages():
    other = Topic("", "other")
    changes = [
        *(change(f"k{n}", b"x", revision=n) for n in (1, 2)),
        change("k", b"", revision=7)._replace(topic=other),
        change("k2", b"", revision=3)._replace(reason="explicit", expires_in_ms=0),
        change("k", b"", revision=8)._replace(topic=other, expires_in_ms=None),
        change("k5", b"", revision=5),
        change("k6", b"", revision=6)._replace(epoch=99),
    ]
    here = as_batches(changes)
    for topic in (changes[0].topic, other):
        its_own = [each for each in changes if each.topic == topic]
        there = [decode_batch(message) for message in encode_batches(its_own)]
        bare = [batch._replace(events=[event._replace(text="") for event in batch.events]) for batch in there]
        assert [batch for batch in here if batch.topic == topic] == bare
        texts = [encode_event(topic.name, event) for batch in here if batch.topic == topic for event in batch.events]
        assert texts == [event.text for batch in there for event in batch.events]
    assert as_batches([]) == []


def test_a_message_tells_its_end_before_it_is_read():
    (message,) = encode_batches([change(f"k{n}", b"", revision=n) for n in (4, 5, 6)])
    assert peek_batch(message) == (change().topic, Revision(change().epoch, 6))


@pytest.mark.parametrize(
    "spoil",
    [
        {"version": 2},
        {"frames": None},
        {"frames": ["not json"]},
        {"frames": ["[]"]},
        {"frames": ["[" * 100_000]},
        {"frames": ['{"key":"k"}']},
        {"expires_in_ms": []},
        {"epoch": "x"},
        {"epoch": math.inf},
        {"frames": ['{"key":"k","client_id":"c","reason":"because"}']},
    ],
)
def test_a_group_message_of_another_kind_is_refused(spoil):
    (message,) = encode_batches([change()])
    with pytest.raises(errors.InvalidFrame):
        decode_batch(message | spoil)
