"""Redis as the network sees it, in front of a real one that carries out each command when it arrives.

What is not real: the time, subscriptions, what becomes of connections, and that commands take no time. Scripts run as
they are, behind a prelude that answers `TIME` with the simulated time, lets keys expire by it, and gives the members of
a set in one order, which a real server draws by lot when it starts.
"""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ephemeral_state.stores import redis as redis_store
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from .network import Connection
    from .world import World

__all__ = ["RealRedis", "Redis"]

_EPOCH = 1_700_000_000.0  # seconds since 1970 when the simulated time is 0
_LUA = Path(redis_store.__file__).parent / "lua"
_OTHER_DATA = range(1, 16)  # databases of the real server that hold earlier data

_PRELUDE = """
local sim_real, sim_us, sim_readonly = redis, table.remove(ARGV), table.remove(ARGV) == '1'
local redis = {}
for name, value in pairs({'error_reply', 'status_reply', 'sha1hex', 'log'}) do redis[value] = sim_real[value] end
local sim_writes = {
  SET=1, HSET=1, HDEL=1, ZADD=1, ZREM=1, SADD=1, SREM=1, DEL=1, UNLINK=1, EXPIRE=1, PEXPIRE=1, LPUSH=1,
  LTRIM=1, RPUSH=1, HINCRBY=1, INCR=1, INCRBY=1, HSETNX=1, ZINCRBY=1, ZREMRANGEBYSCORE=1, ZREMRANGEBYRANK=1,
  PERSIST=1, HINCRBYFLOAT=1, SETRANGE=1, APPEND=1, LREM=1, LPOP=1, RPOP=1, SPOP=1, RENAME=1, COPY=1, HMSET=1,
  PSETEX=1, SETEX=1
}
local sim_run
function sim_run(run, command, ...)
  if command == 'TIME' then
    return {string.sub(sim_us, 1, -7), string.sub(sim_us, -6)}
  end
  if sim_readonly and sim_writes[command] then
    local refusal = {err = "READONLY You can't write against a read only replica."}
    if run == sim_real.call then error(refusal.err) end
    return refusal
  end
  if command == 'PEXPIRE' or command == 'EXPIRE' then
    local key, ttl = ...
    ttl = tonumber(ttl) * (command == 'EXPIRE' and 1000 or 1)
    local done = run('PEXPIRE', key, 1000000000000)
    if done == 1 then
      sim_real.call('ZADD', 'sim:expiry', string.format('%.0f', tonumber(sim_us) / 1000 + ttl), key)
    end
    return done
  end
  if command == 'PTTL' then
    local ttl = run('PTTL', ...)
    if type(ttl) ~= 'number' or ttl < 0 then return ttl end
    local at = sim_real.call('ZSCORE', 'sim:expiry', (...))
    return at and tonumber(at) - math.floor(tonumber(sim_us) / 1000) or ttl
  end
  if command == 'SMEMBERS' then
    local members = run(command, ...)
    if type(members) == 'table' and not members.err then table.sort(members) end
    return members
  end
  if ({SETEX=1, PSETEX=1, PEXPIREAT=1, EXPIREAT=1, TTL=1})[command] then
    error('the simulation does not know ' .. command)
  end
  if command == 'SET' then
    local kept, ttl, given, index = {}, nil, {...}, 1
    while index <= #given do
      local option = index > 2 and given[index]
      if option == 'PX' or option == 'EX' then
        ttl = tonumber(given[index + 1]) * (option == 'EX' and 1000 or 1)
        index = index + 1
      else
        kept[#kept + 1] = given[index]
      end
      index = index + 1
    end
    local done = run('SET', unpack(kept))
    if ttl and done then sim_run(run, 'PEXPIRE', kept[1], ttl) end
    return done
  end
  return run(command, ...)
end
function redis.call(...) return sim_run(sim_real.call, ...) end
function redis.pcall(...) return sim_run(sim_real.pcall, ...) end
"""


def _pack(*args: bytes | str | int) -> bytes:
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class RealRedis:
    """A real server of one's own, asked over a unix socket, one command after the other. A context manager."""

    def __init__(self) -> None:
        self._server = RedisServer("--unixsocket", "redis.sock", "--io-threads", "1")
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        self.calls = 0

    def __enter__(self) -> RealRedis:
        self._server.__enter__()
        self._socket.connect(f"{self._server._directory}/redis.sock")
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._server.__exit__()

    def ask(self, *args: bytes | str | int) -> bytes:
        """The reply as the bytes of the protocol."""
        self.calls += 1
        self._socket.sendall(_pack(*args))
        while (end := _end_of_reply(self._buffer, 0)) < 0:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the real Redis has ended")
            self._buffer += data
        reply, self._buffer = self._buffer[:end], self._buffer[end:]
        return reply

    def value(self, *args: bytes | str | int) -> Any:
        """The reply as Python's values. Raises `RuntimeError` for an error."""
        value, _ = _read(self.ask(*args), 0)
        return value


def _end_of_reply(data: bytes, at: int) -> int:
    """Behind the reply that begins there; -1 if it is not all there."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return -1
    kind = data[at]
    if kind in b"+-:":
        return line_end + 2
    size = int(data[at + 1 : line_end])
    if kind == 36:  # $
        end = line_end + 2 if size < 0 else line_end + size + 4
        return end if end <= len(data) else -1
    at = line_end + 2
    for _ in range(size):
        at = _end_of_reply(data, at)
        if at < 0:
            return -1
    return at


def _read(data: bytes, at: int) -> tuple[Any, int]:
    line_end = data.index(b"\r\n", at)
    kind, line, at = data[at : at + 1], data[at + 1 : line_end], line_end + 2
    if kind == b"-":
        raise RuntimeError(line.decode())
    if kind == b"+":
        return line, at
    if kind == b":":
        return int(line), at
    size = int(line)
    if kind == b"$":
        return (None, at) if size < 0 else (data[at : at + size], at + size + 2)
    values = []
    for _ in range(size):
        value, at = _read(data, at)
        values.append(value)
    return values, at


class _Instance:
    """One life of a Redis server: what it holds is in one database of the real one."""

    def __init__(self, database: int) -> None:
        self.database = database
        self.alive = True
        self.readonly = False
        self.sessions: list[_Session] = []
        self.scripts: set[bytes] = set()


class Redis:
    """One address, behind which there is one server at a time, mostly."""

    def __init__(self, world: World, real: RealRedis) -> None:
        self.world = world
        self.real = real
        self.clock_offset = 0.0
        self.listens = True
        self.tells = False
        """Whether the trace has what each script was asked."""
        self.calls: Counter[str] = Counter()
        self._paused_until = 0.0
        self._waiting: list[tuple[_Session, bytes]] = []
        self._database = -1
        self._free = list(_OTHER_DATA)
        self._saved: dict[str, int] = {}
        self._names: dict[bytes, str] = {}
        self._sources: dict[bytes, bytes] = {}  # what a client calls a script: what the real server calls it
        self._loaded: set[bytes] = set()
        self._purged_at = 0.0
        real.value("FLUSHALL")
        self._instance = _Instance(0)

    # What goes wrong

    def save(self, name: str) -> None:
        """Keep the data as it is now, under this name."""
        database = self._free.pop(0)
        self._select(database)
        self.real.value("FLUSHDB")
        self._copy(self._instance.database, database)
        self._saved[name] = database

    def go_down(self) -> None:
        """The server ends, and every connection with it."""
        self.listens = False
        self._end(self._instance)

    def come_up(self, saved: str | None) -> None:
        """Another one begins: with the data that was saved, or empty."""
        self._replace(saved)
        self.listens = True

    def fail_over(self, saved: str, lingers: float) -> None:
        """A replica that lags takes the address. Connections to the old server last on for so long, and it takes what
        they write, which is lost then."""
        old = self._instance
        self._replace(saved)
        if lingers <= 0:
            self._end(old)
        else:
            self.world.after(lingers, self._end, old)

    def pause(self, seconds: float) -> None:
        """It takes what comes and says nothing for so long."""
        self._paused_until = max(self._paused_until, self.world.now + seconds)
        self.world.at(self._paused_until, self._go_on)

    def forget_scripts(self) -> None:
        self._instance.scripts.clear()

    def evict(self, share: float, rng: Any) -> list[bytes]:
        """Some keys go, as where there is no memory left and keys may be evicted."""
        self._select(self._instance.database)
        keys = sorted(key for key in self.real.value("KEYS", "*") if not key.startswith(b"sim:"))
        gone = [key for key in keys if rng.random() < share]
        if gone:
            self.real.value("DEL", *gone)
        return gone

    def kill_sessions(self, kind: str) -> None:
        """It hangs up on everybody, or on those who are subscribed."""
        for session in list(self._instance.sessions):
            if kind == "all" or session.channels:
                session.hang_up()

    def jump(self, seconds: float) -> None:
        """Its clock is put forward, or back."""
        self.clock_offset += seconds

    @property
    def us(self) -> int:
        return int((_EPOCH + self.world.now + self.clock_offset) * 1_000_000)

    # Behind the address

    def accept(self, connection: Connection) -> _Session:
        session = _Session(self, self._instance, connection)
        self._instance.sessions.append(session)
        return session

    def is_paused(self) -> bool:
        return self._paused_until > self.world.now

    def wait(self, session: _Session, data: bytes) -> None:
        self._waiting.append((session, data))

    def _go_on(self) -> None:
        if self.is_paused():
            return
        waiting, self._waiting = self._waiting, []
        for session, data in waiting:
            session.receive(data)

    def _end(self, instance: _Instance) -> None:
        instance.alive = False
        self._waiting = [(session, data) for session, data in self._waiting if session.instance is not instance]
        for session in list(instance.sessions):
            session.hang_up()
        if instance is not self._instance:
            self._free.append(instance.database)

    def _replace(self, saved: str | None) -> None:
        """The data of another instance is that which was saved."""
        if not self._instance.alive:
            self._free.append(self._instance.database)
        database = self._saved.pop(saved) if saved is not None else self._free.pop(0)
        self._select(database)
        if saved is None:
            self.real.value("FLUSHDB")
        self._instance = _Instance(database)

    def _select(self, database: int) -> None:
        if self._database != database:
            self.real.value("SELECT", database)
            self._database = database

    def _copy(self, source: int, target: int) -> None:
        self._select(source)
        for key in sorted(self.real.value("KEYS", "*")):
            self.real.value("COPY", key, key, "DB", target)

    # Commands

    def execute(self, session: _Session, args: list[bytes]) -> bytes:
        name = args[0].upper()
        self.calls[name.decode()] += 1
        if name == b"EVALSHA":
            if args[1] not in session.instance.scripts:
                return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
            return self._run_script(session, args[1], args[2:])
        if name == b"EVAL":
            sha = self._learn(args[1])
            session.instance.scripts.add(sha)
            return self._run_script(session, sha, args[2:])
        if name == b"SCRIPT" and args[1].upper() == b"LOAD":
            sha = self._learn(args[2])
            session.instance.scripts.add(sha)
            return _pack_bulk(sha)
        if name == b"SUBSCRIBE":
            out = b""
            for channel in args[1:]:
                session.channels[channel] = None
                out += b"*3\r\n" + _pack_bulk(b"subscribe") + _pack_bulk(channel) + b":%d\r\n" % len(session.channels)
            return out
        if name == b"UNSUBSCRIBE":
            for channel in args[1:] or list(session.channels):
                session.channels.pop(channel, None)
            return b"*3\r\n" + _pack_bulk(b"unsubscribe") + b"$-1\r\n:%d\r\n" % len(session.channels)
        if name == b"PUBSUB" and args[1].upper() == b"NUMSUB":
            return self._numsub(session.instance, args[2:])
        if name == b"PING":
            return b"+PONG\r\n"
        if name in (b"CLIENT", b"SELECT"):
            return b"+OK\r\n"
        if name == b"TIME":
            us = self.us
            return b"*2\r\n" + _pack_bulk(b"%d" % (us // 1_000_000)) + _pack_bulk(b"%d" % (us % 1_000_000))
        self._select(session.instance.database)
        return self.real.ask(*args)

    def _learn(self, source: bytes) -> bytes:
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        if sha not in self._sources:
            self._names[sha] = next(
                (path.stem for path in _LUA.glob("*.lua") if source.endswith(path.read_bytes())), "?"
            )
            self._sources[sha] = self.real.value("SCRIPT", "LOAD", _PRELUDE.encode().replace(b"\n", b" ") + source)
        return sha

    def _run_script(self, session: _Session, sha: bytes, args: list[bytes]) -> bytes:
        self._select(session.instance.database)
        if self.world.now - self._purged_at >= 1.0:
            self._purged_at = self.world.now
            self._purge()
        reply = self.real.ask(
            b"EVALSHA", self._sources[sha], *args, b"1" if session.instance.readonly else b"0", self.us
        )
        if reply[:1] == b"-" and b"the simulation does not know" in reply:
            raise NotImplementedError(reply.decode())
        if self.tells and self._names[sha] not in ("beat", "revisions", "report", "sweep"):
            what = f"{session.connection.process.name}: {self._names[sha]} {args[2:]} came to {reply!r:.200}"
            self.world.say(f"Redis {session.instance.database} carries out for {what}")
        return reply

    def _purge(self) -> None:
        """Remove keys that have expired by the simulated time."""
        due = self.real.value("ZRANGEBYSCORE", "sim:expiry", "-inf", self.us // 1000)
        for key in due:
            if self.real.value("PTTL", key) > 0:  # or it is another key of that name, which does not expire
                self.real.value("DEL", key)
        if due:
            self.real.value("ZREM", "sim:expiry", *due)

    def _numsub(self, instance: _Instance, channels: list[bytes]) -> bytes:
        counts: Counter[bytes] = Counter()
        for session in instance.sessions:
            counts.update(list(session.channels))
        out = b"*%d\r\n" % (2 * len(channels))
        for channel in channels:
            out += _pack_bulk(channel) + b":%d\r\n" % counts[channel]
        return out


def _pack_bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


class _Session:
    """The server's end of one connection."""

    def __init__(self, redis: Redis, instance: _Instance, connection: Connection) -> None:
        self.redis = redis
        self.instance = instance
        self.connection = connection
        self.channels: dict[bytes, None] = {}
        self._buffer = b""

    def receive(self, data: bytes) -> None:
        if self not in self.instance.sessions:
            return
        if self.redis.is_paused():
            self.redis.wait(self, data)
            return
        self._buffer += data
        while (args := self._next()) is not None:
            self.connection.reply(self.redis.execute(self, args))

    def _next(self) -> list[bytes] | None:
        end = _end_of_reply(self._buffer, 0) if self._buffer else -1
        if end < 0:
            return None
        args, _ = _read(self._buffer, 0)
        self._buffer = self._buffer[end:]
        return list(args)

    def ended(self) -> None:
        """The client has closed it. What a paused server has not read yet it reads all the same."""
        if self.redis.is_paused():
            self.redis.world.at(self.redis._paused_until, self.redis.world.after, 0.0, self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        if self in self.instance.sessions:
            self.instance.sessions.remove(self)

    def hang_up(self) -> None:
        self._leave()
        self.connection.server_closes(ConnectionResetError(104, "Connection reset by peer"))
