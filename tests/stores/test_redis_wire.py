"""Names as bytes: nothing is mixed up, and the bytes sort as the names do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephemeral_state.state import Topic
from ephemeral_state.stores import redis_wire as wire

# Many NULs and their neighbours: these are what the escaping is about.
names = st.text(st.sampled_from("\0\1a") | st.characters(exclude_categories=["Cs"]), max_size=6)
topics = st.builds(Topic, names, names)


@given(topics, names)
def test_an_entry_reads_back_as_its_names(topic, key):
    assert wire.read_entry(wire.topic_id(topic) + key.encode()) == (topic, key)


@given(topics, names, topics, names)
def test_entries_sort_as_their_names_do(topic, key, other, other_key):
    entries = [wire.topic_id(topic) + key.encode(), wire.topic_id(other) + other_key.encode()]
    assert (entries[0] < entries[1]) == ((*topic, key) < (*other, other_key))


@given(topics, names, names, st.none() | names)
def test_a_range_holds_the_entries_of_its_topic_or_namespace_only(topic, key, namespace, name):
    low, high = wire.entry_range(namespace, name)
    entry = wire.topic_id(topic) + key.encode()
    is_inside = low[1:] <= entry < high[1:]
    assert is_inside == (topic.namespace == namespace and name in (None, topic.name))


@given(st.integers(0, 9), topics, names)
def test_a_cursor_reads_back(partition, topic, key):
    entry = wire.topic_id(topic) + key.encode()
    assert wire.read_cursor(wire.pack_cursor(partition, entry), partitions=10) == (partition, entry)


def test_a_cursor_of_a_store_with_more_partitions_is_foreign():
    with pytest.raises(ValueError, match="cursor"):
        wire.read_cursor(wire.pack_cursor(7, b"x"), partitions=7)
