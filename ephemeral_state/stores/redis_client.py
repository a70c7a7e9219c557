"""Getting at Redis: hosts in the forms of channels_redis, one set of clients per event loop, errors made clear."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any

import redis
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot

from .. import log
from ..conf import SETTING
from ..errors import NotConfigured, StoreUnavailable

__all__ = ["OPTIONS", "Connection", "Script", "is_of_wrong_server", "reaching", "read_hosts", "require_redis_py"]

OPTIONS = f"{SETTING}['OPTIONS']"
"""Where a project has written what the texts of errors name."""

Host = Mapping[str, Any]
_MIN_VERSION = (6, 2)
_MIN_REDIS_PY = (5, 0, 8)  # up to 5.0.4 each pooled connection fails one call after a restart; 5.0.0 has no from_pool
_LOOK = 5.0  # seconds between looks whether a server has evicted keys
_RETRY_RIGHT = 10.0  # seconds between looks whether a right that was missing is there
_PAUSE = 0.25  # seconds between asking a silent host whether it is back
# What redis-py 5 to 7 do by themselves, also for redis-py 8. A socket_timeout would be worse than none: with it
# redis-py awaits each write by asyncio.wait_for, which before Python 3.12 loses a cancellation, and so our time limit.
_NO_TIMEOUTS: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}
_DEFAULTS: dict[str, Any] = {**_NO_TIMEOUTS, "max_connections": 2**31, "protocol": 2}


class Connection:
    """The clients of one event loop. Each server is looked over at its first use: one that is away harms no other.

    A cluster's nodes are found from here, since every call is one script on one slot: the cluster client of
    redis-py 7 sends EVALSHA to a random node, follows the redirection, and drops its connections after five.
    """

    def __init__(self, hosts: Sequence[Host], roots: Sequence[bytes], timeout: float) -> None:
        self._roots = roots
        self._timeout = timeout
        self._patience = timeout / 4
        self._hosts = hosts
        self._clients = [_client(host) for host in hosts]
        self._looked_over = [False] * len(hosts)
        self._locks = [asyncio.Lock() for _ in hosts]
        self._is_cluster = False
        self._nodes: dict[tuple[str, int], Redis] = {}
        self._calls = 0
        self._link: PubSub | None = None
        self._routes: dict[int, Redis] = {}  # of a cluster: which node has the slot of a partition
        self._silent: dict[Redis, asyncio.Task[None]] = {}
        self._doubted: set[Redis] = set()  # clients whose idle connections may lead to the wrong server, or nowhere
        self._next_look = 0.0
        self._evicted: dict[int, int] = {}  # keys, by the number of the server, as of the last look
        self._advised: set[str] = set()
        self._linkless_until = 0.0
        self._linkless = log.Trouble(
            "link_denied",
            "a right is missing in Redis, so a process that is killed is noticed only when its lease is over: "
            "%(error)s",
            "the right is there, a process that is killed is noticed at once",
        )
        self._renewing: defaultdict[Redis, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.moved = False
        """Whether a server said that it is not the one to ask: other processes may still use it."""

    async def run(self, script: Script, number: int, until: float, *args: bytes | int) -> bytes:
        """Run a script in a partition, by the loop time `until`. Raises `StoreUnavailable` saying what happened, or
        `NotConfigured` for a server that cannot be used.

        Of several servers, one that let a call run out of time fails all others at once until it answers again: what
        is asked of several servers together must not wait for that one every time.
        """
        self._calls += 1
        try:
            async with reaching(until, self._timeout):
                return await self._run(script, number, until, *args)
        finally:
            self._calls -= 1

    async def _run(self, script: Script, number: int, until: float, *args: bytes | int) -> bytes:
        try:
            return await self._ask(script, number, until, *args)
        except exceptions.RedisError as error:
            if not is_of_wrong_server(error):
                raise
        # Nothing was carried out there, so asking once more cannot do it twice.
        return await self._ask(script, number, until, *args)

    async def _ask(self, script: Script, number: int, until: float, *args: bytes | int) -> bytes:
        client = self._clients[number % len(self._clients)]
        try:
            client = await self._client_of(number)
            return await script(client, self._roots[number], *args)
        except exceptions.ResponseError as error:
            if is_of_wrong_server(error):
                self.leave_server(number)
            raise
        except BaseException as error:
            self._routes.clear()  # a cluster may have put another node in this one's place
            is_late = asyncio.get_running_loop().time() >= until
            if is_late:
                self._ran_out_of_time(client)
            if is_late or isinstance(error, exceptions.ConnectionError | OSError):
                self._doubted.add(client)
            raise

    def leave_server(self, number: int) -> None:
        """The server that a partition's connections lead to is not the one to ask: the next call connects anew.

        A name may lead to another server by now, and connections that are open stay with the one before.
        """
        self._doubted.add(self._routes.get(number) or self._clients[number % len(self._clients)])
        self._routes.clear()
        if not self._is_cluster:
            self.moved = True
            self._looked_over[number % len(self._clients)] = False  # the next one may be a cluster, or too old

    def _ran_out_of_time(self, client: Redis) -> None:
        if client not in self._silent and len(self._clients) + len(self._nodes) > 1:
            self._silent[client] = asyncio.get_running_loop().create_task(self._await_answer(client))

    async def _await_answer(self, client: Redis) -> None:
        try:
            while True:
                with suppress(TimeoutError, exceptions.TimeoutError):
                    async with asyncio.timeout(self._timeout):
                        await client.execute_command("PING")  # type: ignore[no-untyped-call]
                        return
                await asyncio.sleep(_PAUSE)
        except (exceptions.RedisError, OSError):
            pass  # it is heard of, if nothing good: whoever asks is told at once
        finally:
            del self._silent[client]

    async def linked(self, channels: Sequence[bytes]) -> list[bool]:
        """Hold a subscription to the first channel, where partition 0 is; say of each whether anybody does."""
        client = await self._client_of(0)
        now = asyncio.get_running_loop().time()
        has_evicted = await self._has_evicted(now)
        if now < self._linkless_until:
            return [not has_evicted] + [True] * (len(channels) - 1)
        try:
            linked = await self._linked(client, channels)
        except (exceptions.ConnectionError, OSError):
            self._doubted.add(client)
            raise
        except exceptions.ResponseError as error:
            if (missing := _missing_right(error)) is None:
                raise
            # Nothing is known of anybody's subscription then: whoever is killed is found out by the lease alone.
            self._linkless_until = now + _RETRY_RIGHT
            self._linkless.met(StoreUnavailable(_needed_for_links(missing, channels[0])))
            return [not has_evicted] + [True] * (len(channels) - 1)
        self._linkless.over()
        return [linked[0] and not has_evicted, *linked[1:]]

    async def _has_evicted(self, now: float) -> bool:
        """Whether a server has thrown away keys since the last look, maybe of ours: what it has lost must be written
        back, as after its restart. Warns of a server that may. One that does not tell has not."""
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK
        has_evicted = False
        for place, client in enumerate((*self._clients, *self._nodes.values())):
            try:
                self._require_answers(client)
                async with asyncio.timeout(self._patience):
                    info = await client.info()
            except (
                exceptions.RedisError,
                OSError,
            ):  # a user may lack INFO, and a server that is away is noticed anyway
                continue
            for text in _advice(info):
                if text not in self._advised:
                    self._advised.add(text)
                    log.warning("store_advice", "%(advice)s", advice=text)
            evicted = int(info.get("evicted_keys", 0))
            if evicted > self._evicted.setdefault(place, evicted):
                has_evicted = True
                log.warning(
                    "keys_evicted",
                    "Redis was full and has evicted %(keys)s keys, writing back what this process owns",
                    keys=evicted - self._evicted[place],
                )
            self._evicted[place] = evicted
        return has_evicted

    async def advice(self, channel: bytes) -> list[str]:
        """What of the servers, or of the user's rights, will do harm though everything works. `channel` is one that a
        node might hold."""
        await self._client_of(0)
        found: list[str] = []
        for client in (*self._clients, *self._nodes.values()):
            with suppress(exceptions.ResponseError):
                found += _advice(await client.info())
        client = await self._client_of(0)
        try:
            link = await self._subscribed(client, channel)
            await link.aclose()  # type: ignore[no-untyped-call]
            await client.pubsub_numsub(channel)
        except exceptions.ResponseError as error:
            if (missing := _missing_right(error)) is None:
                raise
            found.append(f"a process that is killed is noticed late: {_needed_for_links(missing, channel)}")
        return list(dict.fromkeys(found))

    async def _linked(self, client: Redis, channels: Sequence[bytes]) -> list[bool]:
        if self._link is not None and channels[0] not in self._link.channels:  # the node has another name now
            former, self._link = self._link, await self._subscribed(client, channels[0])
            await former.aclose()  # type: ignore[no-untyped-call]
        if self._link is None:
            self._link = await self._subscribed(client, channels[0])
        counts = [count for _, count in await client.pubsub_numsub(*channels)]
        if not counts[0]:  # somebody cut it: at once again, for others may be looking
            # Kept until there is another one: if that fails, the next call tells that it was cut.
            await self._link.aclose()  # type: ignore[no-untyped-call]
            self._link = await self._subscribed(client, channels[0])
        return [count > 0 for count in counts]

    async def _subscribed(self, client: Redis, channel: bytes) -> PubSub:
        link = client.pubsub()
        try:
            await link.subscribe(channel)
            await link.get_message(timeout=self._patience)  # the confirmation
        except BaseException:
            with suppress(exceptions.RedisError, OSError):
                await link.aclose()  # type: ignore[no-untyped-call]
            raise
        return link

    async def find_masters(self) -> None:
        """With Sentinel, the next calls go to whoever is the master now. After a failover on purpose the one before it
        goes on answering for some seconds, and whoever has moved to its successor seems to be dead there."""
        for client in self._clients:
            pool = client.connection_pool
            if isinstance(pool, SentinelConnectionPool):
                with suppress(exceptions.RedisError, OSError):  # no Sentinel says anything
                    async with asyncio.timeout(self._patience):
                        await pool.get_master_address()  # type: ignore[no-untyped-call]
                        await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Once what is under way is done: each call has its time limit. There must be no new ones."""
        while self._calls:  # noqa: ASYNC110 - rare and short; an event would have to be kept for it
            await asyncio.sleep(0.01)
        silent = list(self._silent.values())
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            with suppress(exceptions.RedisError, OSError):
                await link.aclose()  # type: ignore[no-untyped-call]
        for client in (*self._clients, *self._nodes.values(), *self._sentinels()):
            with suppress(exceptions.RedisError, OSError):
                await client.aclose()

    def _sentinels(self) -> list[Redis]:
        pools = [client.connection_pool for client in self._clients]
        return [
            sentinel
            for pool in pools
            if isinstance(pool, SentinelConnectionPool)
            for sentinel in pool.sentinel_manager.sentinels
        ]

    async def _client_of(self, number: int) -> Redis:
        place = number % len(self._clients)
        if not self._is_cluster:
            self._require_answers(self._clients[place])
        if not self._looked_over[place] and not self._is_cluster:
            async with self._locks[place]:
                if not self._looked_over[place]:
                    if await _mode(await self._anew(self._clients[place])) == "cluster":
                        self._is_cluster = True
                    self._looked_over[place] = True
        if not self._is_cluster:
            return await self._anew(self._clients[place])
        if len(self._roots) == 1:
            raise NotConfigured(f"this Redis is a cluster: {OPTIONS}['partitions'] must be more than 1, for example 64")
        if number not in self._routes:
            await self._find_routes()
        if number not in self._routes:
            raise exceptions.ClusterDownError("CLUSTERDOWN no node of the cluster serves the slot of this partition")
        self._require_answers(self._routes[number])
        return await self._anew(self._routes[number])

    async def _anew(self, client: Redis) -> Redis:
        """The client, without the connections that it kept if they are doubted."""
        lock = self._renewing[client]
        if client in self._doubted or lock.locked():
            async with lock:  # nobody else may take one that is being closed
                if client in self._doubted:
                    self._doubted.discard(client)
                    with suppress(exceptions.RedisError, OSError):  # also where a dead peer does not take a goodbye
                        async with asyncio.timeout(self._patience):
                            await client.connection_pool.disconnect(inuse_connections=False)
        return client

    def _require_answers(self, client: Redis) -> None:
        if client in self._silent:
            raise exceptions.TimeoutError("not asked: it has not answered the last call yet")

    async def _find_routes(self) -> None:
        """Ask any node of the cluster which node has which slots."""
        failure: Exception | None = None
        for client in (*self._clients, *self._nodes.values()):
            try:
                self._require_answers(client)
                async with asyncio.timeout(self._patience):
                    ranges = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (exceptions.RedisError, OSError) as error:
                if isinstance(error, TimeoutError):
                    self._ran_out_of_time(client)
                failure = error
                continue
            seed = client.connection_pool.connection_kwargs.get("host", "localhost")
            slots = [(range(first, last + 1), self._node(seed, *node[:2])) for first, last, node, *_ in ranges]
            for number, root in enumerate(self._roots):
                self._routes.update((number, node) for own, node in slots if key_slot(root) in own)
            return
        raise failure or exceptions.ConnectionError("no host")

    def _node(self, seed: str, host: bytes | None, port: int) -> Redis:
        name = (host.decode() if host else seed, port)
        if name not in self._nodes:
            # As the first host was told to be reached: TLS, user, password.
            self._nodes[name] = _client({**self._hosts[0], "host": name[0], "port": name[1]})
        return self._nodes[name]


def require_redis_py() -> None:
    """Raises `NotConfigured` for a redis-py that is too old."""
    version = redis.__version__
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < _MIN_REDIS_PY:
        least = ".".join(map(str, _MIN_REDIS_PY))
        raise NotConfigured(
            f"redis-py {version} is too old: {least} is the oldest that can be used (pip install -U redis)"
        )


def read_hosts(url: str | None, hosts: Sequence[Any] | None) -> list[Host]:
    """Arguments of redis-py's connection pools, one dict per host."""
    if url is not None and hosts is not None:
        raise NotConfigured(f"{OPTIONS} has both 'url' and 'hosts': give one of them")
    if isinstance(hosts, str | bytes | Mapping) or not isinstance(hosts, Sequence | None):
        raise NotConfigured(f"{OPTIONS}['hosts'] must be a list, even of one host, not {type(hosts).__name__}")
    return [_read_host(host) for host in ([url] if url is not None else hosts or ["redis://localhost:6379"])]


def _read_host(host: Any) -> Host:
    """Never quotes the host: it may hold a password."""
    if isinstance(host, tuple | list) and len(host) == 2:
        options: dict[str, Any] = {"host": host[0], "port": host[1]}
    elif isinstance(host, Mapping):
        options = dict(host)
    elif isinstance(host, str):
        options = {"address": host}
    else:
        raise NotConfigured(
            f"a host in {OPTIONS} must be a URL, a (host, port) pair or a dict, not {type(host).__name__}"
        )
    if "address" in options:
        try:
            # Servers that call themselves Valkey have schemes of their own for the same thing.
            options |= parse_url(re.sub("^valkey(s?)://", r"redis\1://", options.pop("address")))
        except (ValueError, TypeError, AttributeError) as error:
            text = f"the URL of a host in {OPTIONS} cannot be read: {error}; for Sentinel give hosts with master_name "
            raise NotConfigured(text + "and sentinels") from None
    if "master_name" in options and not options.get("sentinels"):
        raise NotConfigured(f"a host with master_name in {OPTIONS} needs sentinels, a list of (host, port)")
    # Replies are bytes that are no text. And no retries: each call has one time limit, and a write that may have
    # been carried out must not be sent twice behind the caller's back.
    return _DEFAULTS | options | {"decode_responses": False, "retry": Retry(NoBackoff(), 0)}


def _client(host: Host) -> Redis:
    options = dict(host)
    name = options.pop("master_name", None)
    try:
        if name is None:
            pool = ConnectionPool(**options)
            pool.make_connection()  # type: ignore[no-untyped-call]  # does not connect, only takes the options
        else:
            sentinel_options = {**_NO_TIMEOUTS, **(options.pop("sentinel_kwargs", None) or {})}
            sentinel = Sentinel(options.pop("sentinels"), sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
            pool = SentinelConnectionPool(name, sentinel, **options)  # type: ignore[no-untyped-call]
    except TypeError as error:
        raise NotConfigured(f"redis-py does not take these options of a host in {OPTIONS}: {error}") from None
    return Redis.from_pool(pool)


async def _mode(client: Redis) -> str:
    """Its mode: standalone or cluster. Raises `NotConfigured` for a server that will never do."""
    info = await _server_info(client)
    version = str(info.get("redis_version", ""))
    if version and tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _MIN_VERSION:
        raise NotConfigured(f"Redis {version} is too old: 6.2 is the oldest that can be used")
    mode = str(info.get("redis_mode") or info.get("server_mode") or "standalone")
    if mode == "sentinel":
        raise NotConfigured("this is a Sentinel: give it in hosts, as master_name and sentinels")
    return mode


_WRONG_SERVER = (
    exceptions.AskError,  # and MOVED
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,  # and MASTERDOWN
    exceptions.ReadOnlyError,
)
_WRONG_SERVER_TEXT = re.compile(
    r"(Redis refused: )?(Error running script .*?@user_script: ?\d+: -)?"
    r"(READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|MOVED|ASK) "
)


def is_of_wrong_server(error: BaseException | None) -> bool:
    """Whether Redis refused because it is not, or not yet, the server to ask: a replica that was a master, one that
    loads its data or has lost its master, a cluster that has moved on. Nothing has been carried out then.

    Redis 6.2 says so in the text of a script's error only, and a store's refusal of a single write has only a text.
    For redis-py before 6 MOVED and ASK are nothing but a text, too.
    """
    if isinstance(error, _WRONG_SERVER):
        return True
    is_answer = isinstance(error, exceptions.ResponseError | StoreUnavailable)
    return is_answer and _WRONG_SERVER_TEXT.match(str(error)) is not None


async def _server_info(client: Redis) -> Mapping[str, Any]:
    """Its version and mode. A user without INFO is told them by HELLO, and one without that is told nothing."""
    try:
        return dict(await client.info("server"))
    except exceptions.InvalidResponse as error:
        raise NotConfigured(f"what answers at the address in {OPTIONS} is not Redis") from error
    except exceptions.ResponseError as error:
        if _missing_right(error) is None:
            raise
    try:
        hello = await client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except exceptions.ResponseError:
        return {}
    pairs = hello.items() if isinstance(hello, dict) else zip(hello[::2], hello[1::2], strict=False)
    fields = {_text(name): _text(value) for name, value in pairs}
    return {"redis_version": fields.get("version", ""), "redis_mode": fields.get("mode", "")}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@asynccontextmanager
async def reaching(until: float, timeout: float) -> AsyncIterator[None]:
    """By the loop time `until`, or `StoreUnavailable`: whatever goes wrong with Redis inside becomes that.

    `timeout`, in seconds, is only for the text.
    """
    try:
        async with asyncio.timeout_at(until):
            yield
    except (TimeoutError, exceptions.TimeoutError) as error:
        raise StoreUnavailable(f"Redis did not answer within {timeout:g} s") from error
    except (exceptions.RedisError, OSError) as error:
        raise StoreUnavailable(_reason(error)) from error


def _missing_right(error: exceptions.ResponseError) -> str | None:
    """In Redis' own words, if that is what is wrong: the user may not do it, or the command has been renamed."""
    text = str(error)
    is_missing = isinstance(error, exceptions.NoPermissionError) or "nknown command" in text
    return text if is_missing else None


def _needed_for_links(missing: str, channel: bytes) -> str:
    pattern = channel.rpartition(b":")[0].decode(errors="replace") + ":*"
    return f"{missing.strip()}; the user of the store needs SUBSCRIBE, and PUBSUB NUMSUB, of {pattern}"


def _advice(info: Mapping[str, Any]) -> list[str]:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction" or not int(info.get("maxmemory", 0)):
        return []
    return [
        f"Redis may evict keys (maxmemory-policy {policy}): state of living owners would be lost, and that of dead "
        "ones stay; set maxmemory-policy noeviction, or use a Redis of its own"
    ]


def _reason(error: BaseException) -> str:
    """Says what happened without addresses, since clients may see it. Those are in the cause."""
    causes = _chain(error)
    if isinstance(error, exceptions.NoPermissionError):
        return f"the user of Redis lacks a right: {error}"
    if isinstance(error, exceptions.AuthenticationError):
        return f"Redis refused the credentials: {error}"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"Redis refused the connection: nothing listens at the address in {OPTIONS}"
    if isinstance(error, exceptions.BusyLoadingError):
        return "Redis is loading its data (LOADING)"
    if isinstance(error, exceptions.InvalidResponse):
        return f"what answers at the address in {OPTIONS} is not Redis"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return f"the connection to Redis failed: {type(causes[-1]).__name__}"
    # redis-py takes the code off the text of these.
    code = "READONLY " if isinstance(error, exceptions.ReadOnlyError) else ""
    return f"Redis refused: {code}{error}"


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return chain


class Script:
    """One file of `lua/`, behind the part that all of them share."""

    def __init__(self, name: str) -> None:
        lua = resources.files(__package__) / "lua"
        files = (lua / "common.lua", lua / f"{name}.lua")
        self._source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Redis, root: bytes, *args: bytes | int) -> bytes:
        try:
            reply = await client.execute_command("EVALSHA", self._sha, 1, root, *args)  # type: ignore[no-untyped-call]
        except exceptions.NoScriptError:  # a new server, a failover, SCRIPT FLUSH: EVAL loads it again
            reply = await client.execute_command("EVAL", self._source, 1, root, *args)  # type: ignore[no-untyped-call]
        return bytes(reply)
