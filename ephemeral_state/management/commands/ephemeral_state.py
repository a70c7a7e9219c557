"""`manage.py ephemeral_state`: what is live and who holds it, watched, cleared and examined."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...errors import EphemeralStateError
from ...node import conclude
from ...state import Topic
from ...stores import get_store
from .. import entries, processes
from ..terminal import shown
from ..watch import watch

__all__ = ["Command"]

T = TypeVar("T")

_CANNOT = 2  # the exit code of argparse too


class Command(BaseCommand):
    help = "Look at ephemeral state: list, watch, clear, processes, doctor."
    requires_system_checks = ()  # it is for when something is wrong

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        epilog = "Exit codes: 0 done, and nothing is wrong. 1 the doctor found something that is not repaired. "
        epilog += "2 it could not be done, and nothing was changed unless the message says so."
        return super().create_parser(prog_name, subcommand, epilog=epilog, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)

        def verb(name: str, text: str) -> CommandParser:
            made: CommandParser = verbs.add_parser(name, help=text, description=text)
            return made

        listing = verb("list", "List what is live.")
        listing.add_argument("--namespace", help="only of this namespace; it may be empty")
        listing.add_argument("--topic", help="only of this topic")
        listing.add_argument("--search", default="", help="only with this in the topic, key or owner")
        listing.add_argument("--limit", type=_count, default=100, metavar="N", help="at most so many (default: 100)")
        watching = verb("watch", "Show each change of a topic as it happens, until Ctrl-C.")
        watching.add_argument("topic")
        watching.add_argument("--namespace", default="")
        clearing = verb("clear", "Clear one key, or everything in a topic, with reason explicit.")
        clearing.add_argument("topic")
        clearing.add_argument("key", nargs="?")
        clearing.add_argument("--namespace", default="")
        clearing.add_argument("--yes", action="store_true", help="clear a whole topic without asking")
        holding = verb("processes", "List the processes that hold connections, and how they are.")
        examining = verb("doctor", "Examine what is in Redis: exit code 0 clean, 1 findings, 2 it could not run.")
        examining.add_argument("--fix", action="store_true", help="repair it; 0 if all of it was")
        for each in (listing, watching, holding):
            each.add_argument("--json", action="store_true", help="one JSON object a line")
        examining.add_argument("--json", action="store_true", help="one JSON object")

    def handle(self, *, verb: str, **options: Any) -> None:
        verbs: dict[str, Callable[..., None]] = {
            "list": self._list,
            "watch": self._watch,
            "clear": self._clear,
            "processes": self._processes,
            "doctor": self._doctor,
        }
        try:
            verbs[verb](**options)
        except EphemeralStateError as error:
            raise CommandError(str(error), returncode=_CANNOT) from error
        except BrokenPipeError:  # whoever read it has seen enough; what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _list(
        self, *, namespace: str | None, topic: str | None, search: str, limit: int, json: bool, **_: object
    ) -> None:
        more = _run(
            lambda: entries.show(
                self.stdout.write, namespace=namespace, topic=topic, search=search, limit=limit, as_json=json
            )
        )
        if more:
            self.stderr.write(f"There are more than {limit}: --limit shows them.")
        if not get_store().shared:
            self.stderr.write(f"{type(get_store()).__name__} shows this process only.")

    def _watch(self, *, topic: str, namespace: str, json: bool, **_: object) -> None:
        def write(line: str) -> None:
            self.stdout.write(line)
            self.stdout.flush()

        with suppress(KeyboardInterrupt):
            asyncio.run(watch(Topic(namespace, topic), write, as_json=json))

    def _clear(self, *, topic: str, key: str | None, namespace: str, yes: bool, **_: object) -> None:
        where = Topic(namespace, topic)
        found = _run(lambda: entries.find(where, key))
        what = f"topic {shown(topic)}" if key is None else f"key {shown(key)} in topic {shown(topic)}"
        what += f" of namespace {shown(namespace)}" if namespace else ""
        if not found:
            hint = "" if get_store().shared else f": {type(get_store()).__name__} shows this process only"
            raise CommandError(f"nothing is live under {what}{hint}", returncode=_CANNOT)
        if key is None and not yes:
            number = "1 entry" if len(found) == 1 else f"{len(found)} entries"
            self._ask(f"Clear {number} of {what}? [y/N] ")
        cleared = _run(lambda: entries.clear(found))
        self.stdout.write(f"Cleared {cleared}." + (" The rest was gone already." if cleared < len(found) else ""))

    def _ask(self, question: str) -> None:
        try:
            answer = input(question)
        except (EOFError, KeyboardInterrupt):
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was cleared; --yes does not ask", returncode=_CANNOT)

    def _processes(self, *, json: bool, **_: object) -> None:
        _run(lambda: processes.show(self.stdout.write, as_json=json))

    def _doctor(self, *, fix: bool, json: bool, **_: object) -> None:
        try:
            from ..doctor import examine
        except ImportError as error:
            raise CommandError(f"the doctor knows Redis only: {error}", returncode=_CANNOT) from None
        if not _run(lambda: examine(self.stdout.write, self.stderr.write, fix=fix, as_json=json)):
            sys.exit(1)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, not {text!r:.80}")
    return number


def _run(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """In an event loop of its own, whose connections end with it."""

    async def run() -> T:
        store = get_store()
        try:
            return await start()
        finally:
            await conclude()
            await store.close()

    return asyncio.run(run())
