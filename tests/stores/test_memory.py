"""What only the memory store has to keep: its own memory."""

from ephemeral_state.state import Clear, Entry, Limits, Set
from ephemeral_state.stores.base import Store
from ephemeral_state.stores.memory import MemoryStore
from tests.conformance import ManualClock

from .world import ROOM


async def test_a_key_that_is_set_again_and_again_files_no_more_than_there_are_moments():
    clock = ManualClock()
    store = MemoryStore(Limits(), clock)
    await store.apply([Set("c", ROOM, "ends first", b"", 60_000)])
    for n in range(5000):
        clock.now += 1_000_000 * (n % 10 == 0)
        await store.apply([Set("c", ROOM, "busy", b"", 120_000)])
    assert len(store._slice_heap) == len(set(store._slice_heap)) < 5000 / 10 / 16 + 3
    clock.now += 120_001 * 1_000_000
    assert len((await store.sweep()).changes) == 2
    assert (store._slice_heap, store._slices) == ([], {})


async def test_the_next_process_goes_on_with_larger_epochs():
    epochs = []
    for _ in range(2):
        store = MemoryStore(Limits())
        for _ in range(3):
            set_it, _ = await store.apply([Set("c", ROOM, "k"), Clear("c", ROOM, "k")])
            epochs.append(set_it.changes[0].epoch)
    assert epochs == sorted(set(epochs))


class Plain(MemoryStore):
    """Has only what a store has to have."""

    entry = Store.entry


async def test_a_store_that_only_reads_topics_can_be_asked_for_one_entry():
    store = Plain(Limits(), ManualClock())
    await store.apply([Set("ann", ROOM, "a", b"x"), Set("ann", ROOM, "b")])
    assert await store.entry(ROOM, "a") == Entry(ROOM, "a", "ann", b"x", 60_000)
    assert await store.entry(ROOM, "c") is None
