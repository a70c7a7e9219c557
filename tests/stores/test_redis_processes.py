"""One store, many processes, threads and event loops."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import sys
import threading

import pytest
import redis
from asgiref.sync import async_to_sync

from ephemeral_state.state import Clear, Drop, Limits, Revision, Set, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import wait_for
from tests.stores.world import ROOM, World, runs

pytestmark = pytest.mark.redis

WRITES = 60


def store(url, prefix, **options):
    return RedisStore(Limits(), url=url, prefix=prefix, timeout=20, **options)


def write(url, prefix, name, gate, out):
    """A process that sets, clears and drops one and the same key as fast as it can."""

    async def main():
        own = store(url, prefix)
        await own.count()
        gate.wait()
        changes = []
        for number in range(WRITES):
            batch = [Set(name, ROOM, "k", f"{name}:{number}".encode())]
            if number % 7 == 3:
                batch.append(Clear(name, ROOM, "k"))
            if number % 11 == 5:
                batch.append(Drop(name))
            for outcome in await own.apply(batch):
                changes += [(c.epoch, c.revision, c.client_id, c.payload, c.reason) for c in outcome.changes]
        await own.close()
        return changes

    out.put(asyncio.run(main()))


def test_the_last_revision_of_many_writers_is_the_value_that_stays(redis_url, prefix):
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(4), context.SimpleQueue()
    arguments = [(redis_url, prefix, f"writer{number}", gate, out) for number in range(4)]
    processes = [context.Process(target=write, args=each) for each in arguments]
    for process in processes:
        process.start()
    changes = sorted(change for _ in processes for change in out.get())
    for process in processes:
        process.join()
        process.close()

    async def look():
        own = store(redis_url, prefix)
        snapshot = await own.snapshot(ROOM)
        await own.close()
        return snapshot

    snapshot = asyncio.run(look())
    # Every change has a number of its own, and none is missing: no write was lost or told twice. A topic that was
    # empty begins a new epoch.
    for epoch in {change[0] for change in changes}:
        revisions = [change[1] for change in changes if change[0] == epoch]
        assert revisions == list(range(1, len(revisions) + 1))
    if snapshot.entries:
        assert snapshot.revision == Revision(*changes[-1][:2])
    _, _, client, payload, reason = changes[-1]
    assert [(e.client_id, e.payload) for e in snapshot.entries] == ([] if reason else [(client, payload)])
    # Fenced: a clear is always of the value that was there, by the one who had set it.
    owner = None
    for _, _, client, _, reason in changes:
        assert reason is None or client == owner
        owner = client if reason is None else None


@runs
async def test_tasks_that_race_each_get_revisions_of_their_own(redis_url, prefix):
    world = World(store(redis_url, prefix, partitions=3), None)
    topics = [Topic("", f"t{number}") for number in range(4)]
    batches = [[Set(f"c{n}", topic, f"k{m % 3}") for topic in topics for m in range(5)] for n in range(20)]
    results = await asyncio.gather(*(world.store.apply(batch) for batch in batches))
    for topic in topics:
        revisions = []
        for outcomes in results:
            own = [c.revision for outcome in outcomes for c in outcome.changes if c.topic == topic]
            assert own == list(range(own[0], own[0] + len(own)))
            revisions += own
        assert sorted(revisions) == list(range(1, len(revisions) + 1))


def test_one_store_serves_every_loop_and_thread(redis_url, prefix):
    shared = store(redis_url, prefix)
    failures = []

    def work(name):
        async def main():
            for number in range(10):
                (outcome,) = await shared.apply([Set(name, ROOM, f"{name}{number}")])
                assert outcome.error is None
            await shared.close()

        try:
            asyncio.run(main())
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"thread{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with asyncio.Runner() as runner:
        assert runner.run(shared.count()) == 40
        runner.run(shared.close())


def test_a_loop_that_closed_its_store_leaves_no_connection(redis_url, prefix):
    with redis.Redis.from_url(redis_url) as client:

        def connections():
            return int(client.info("clients")["connected_clients"])

        shared = store(redis_url, prefix)

        async def main():
            await asyncio.gather(*(shared.count() for _ in range(5)))
            await shared.close()
            await shared.count()
            await shared.close()
            await shared.close()

        before = connections()
        for _ in range(3):
            asyncio.run(main())
        gc.collect()
        for _ in range(200):
            if connections() <= before:
                break
        assert connections() <= before
        assert not shared._connections


def in_a_loop_of_its_own(call, *args):
    return asyncio.run(call(*args))


def as_django_does(call, *args):
    return async_to_sync(call)(*args)


@pytest.mark.parametrize("run", [in_a_loop_of_its_own, as_django_does])
def test_a_loop_that_ends_closes_the_connections_that_nobody_has_closed(run, redis_url, prefix):
    with redis.Redis.from_url(redis_url) as client:

        def connections():
            return int(client.info("clients")["connected_clients"])

        shared = store(redis_url, prefix)
        before = connections()
        for number in range(20):
            run(shared.apply, [Set("c", ROOM, f"{number}")])
        wait_for(lambda: connections() <= before)
        assert len(shared._connections) <= 1  # that of the last loop is forgotten with the next


@pytest.mark.skipif(not hasattr(os, "fork") or sys.version_info >= (3, 12), reason="a fork with threads warns there")
def test_a_fork_connects_anew_and_leaves_the_parents_connection_alone(redis_url, prefix):
    shared = store(redis_url, prefix)
    with asyncio.Runner() as runner:
        runner.run(shared.apply([Set("parent", ROOM, "k")]))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # As a preforking server would: a new loop, the parent's connections still in memory.
                loop = asyncio.new_event_loop()
                (outcome,) = loop.run_until_complete(shared.apply([Set("child", ROOM, "k2")]))
                status = 0 if outcome.error is None and len(shared._inherited) == 1 else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert [entry.key for entry in runner.run(shared.snapshot(ROOM)).entries] == ["k", "k2"]
        runner.run(shared.close())
