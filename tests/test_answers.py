"""What is on its way: told in order, never too much of it, and nobody is told who has left."""

import asyncio

import pytest

from ephemeral_state.answers import Answers
from ephemeral_state.errors import TooManyKeys
from ephemeral_state.state import Outcome

from .waiting import settle


class Client:
    def __init__(self):
        self.told = []
        self.failures = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.answers = Answers(self.send, self.failures.append)

    async def send(self, text):
        await self.reads.wait()
        self.told.append(text)


@pytest.fixture
async def client():
    client = Client()
    yield client
    await client.answers.stop()


def promised():
    return asyncio.get_running_loop().create_future()


async def test_answers_come_in_order_each_with_its_own_outcome(client):
    first, second = promised(), promised()
    await client.answers.promise(first, 1)
    await client.answers.promise(second, "two")
    second.set_result(Outcome((), TooManyKeys("256 keys")))
    await settle()
    assert client.told == []
    first.set_result(Outcome())
    await client.answers.given()
    assert client.told == [
        '{"_orama":"ephemeral.ok","ref":1}',
        '{"_orama":"ephemeral.error","code":"too_many_keys","message":"256 keys","ref":"two"}',
    ]
    assert client.answers.open == 0


async def test_so_many_may_be_on_their_way_and_the_next_waits(client):
    outcomes = [promised() for _ in range(64)]
    for outcome in outcomes[:63]:
        await client.answers.promise(outcome, None)
    waiting = asyncio.create_task(client.answers.promise(outcomes[63], None))
    for outcome in outcomes:
        await settle()
        assert not waiting.done()
        outcome.set_result(Outcome())
    await waiting
    assert len(client.told) == 64


async def test_a_client_that_does_not_read_is_waited_for(client):
    client.reads.clear()
    outcome = promised()
    await client.answers.promise(outcome, None)
    outcome.set_result(Outcome())
    given = asyncio.create_task(client.answers.given())
    await settle()
    assert not given.done()
    client.reads.set()
    await given
    assert len(client.told) == 1


async def test_what_is_known_is_told_before_the_promise_returns_and_in_its_turn(client):
    known, open_, later = promised(), promised(), promised()
    known.set_result(Outcome())
    later.set_result(Outcome())
    await client.answers.promise(known, 1)
    assert client.told == ['{"_orama":"ephemeral.ok","ref":1}']
    await client.answers.promise(open_, 2)
    client.reads.clear()
    open_.set_result(Outcome())
    await settle()
    await client.answers.promise(later, 3)  # while the second one is being told
    assert len(client.told) == 1
    client.reads.set()
    await client.answers.given()
    assert [text[-2] for text in client.told] == ["1", "2", "3"]


async def test_what_cannot_be_said_at_once_is_a_failure_too(client):
    async def broken(text):
        raise ValueError("middleware")

    answers = Answers(broken, client.failures.append)
    outcome = promised()
    outcome.set_result(Outcome())
    await answers.promise(outcome, None)
    assert [str(error) for error in client.failures] == ["middleware"]


async def test_what_cannot_be_said_is_a_failure_and_the_end_of_it(client):
    async def broken(text):
        raise ValueError("middleware")

    answers = Answers(broken, client.failures.append)
    for outcome in (done := promised(), promised()):
        await answers.promise(outcome, None)
    done.set_result(Outcome())
    await answers.given()
    assert [str(error) for error in client.failures] == ["middleware"]
    assert answers.open == 0


async def test_who_has_left_is_told_nothing(client):
    outcome = promised()
    await client.answers.promise(outcome, None)
    await settle()
    await client.answers.stop()
    assert outcome.cancelled()
    assert (client.told, client.failures) == ([], [])
