"""The first step of a coroutine, taken in place: a task is made only for what has to wait."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any

__all__ = ["Rest", "awaited", "begin"]


def begin(coroutine: Coroutine[Any, Any, None]) -> Rest | None:
    """What is left of it after its first step, which raises what the step raises; `None` if that was all.

    The step belongs to whichever task is running, or to none. So nothing in it may ask for the current task, as
    `asyncio.timeout` does.
    """
    try:
        return Rest(coroutine, coroutine.send(None))
    except StopIteration:
        return None


class Rest:
    """What is left of a coroutine after its first step, as an awaitable."""

    def __init__(self, steps: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    answer = yield waits_for
                except GeneratorExit:
                    raise
                except BaseException as error:
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(answer)
        except StopIteration:
            return
        finally:
            self._steps.close()


async def awaited(awaitable: Awaitable[None]) -> None:
    """The awaitable as a coroutine, which is what a task takes."""
    await awaitable
