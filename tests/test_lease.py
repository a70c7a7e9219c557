import pytest

from ephemeral_state.lease import BEAT, Judge
from ephemeral_state.state import Peer, Roll


def roll(*peers, linked=True):
    return Roll(1, True, linked, peers)


def alive(node, stamp):
    return Peer(node, 10_000, True, str(stamp))


def unlinked(node, stamp):
    return Peer(node, 10_000, False, str(stamp))


def names(peers):
    return [peer.node for peer in peers]


@pytest.fixture
def judge():
    judge = Judge()
    for n in range(-2, 1):
        assert judge.dead(roll(), n * BEAT) == []
    return judge


def test_a_peer_whose_connection_is_closed_and_that_does_not_renew_is_dead_at_the_second_reading(judge):
    assert judge.dead(roll(alive("p", 1)), BEAT) == []
    assert judge.dead(roll(unlinked("p", 1)), 2 * BEAT) == []
    assert names(judge.dead(roll(unlinked("p", 1)), 3 * BEAT)) == ["p"]


def test_a_peer_whose_connection_was_cut_but_that_renews_is_alive(judge):
    for n in range(1, 10):
        assert judge.dead(roll(unlinked("p", n)), n * BEAT) == []


def test_a_peer_that_is_frozen_is_dead_when_its_lease_has_run_out(judge):
    for n in range(1, 4):
        assert judge.dead(roll(Peer("p", 2000 - 500 * n, True, "1")), n * BEAT) == []
    assert names(judge.dead(roll(Peer("p", 0, True, "1")), 4 * BEAT)) == ["p"]


def test_when_the_store_cut_us_too_nobody_is_dead(judge):
    judge.dead(roll(unlinked("p", 1), unlinked("q", 1)), BEAT)
    assert judge.dead(roll(unlinked("p", 1), unlinked("q", 1), linked=False), 2 * BEAT) == []
    for n in range(3, 6):
        assert judge.dead(roll(unlinked("p", 1), unlinked("q", 1)), n * BEAT) == []
    assert names(judge.dead(roll(unlinked("p", 1), alive("q", 2)), 6 * BEAT)) == ["p"]


def test_where_the_store_may_have_moved_a_peer_that_is_not_linked_there_yet_is_alive_until_its_lease_is_over():
    judge = Judge(moves=True)
    judge.dead(roll(unlinked("p", 1), unlinked("q", 1)), BEAT)
    assert judge.dead(roll(unlinked("p", 1), unlinked("q", 1), linked=False), 2 * BEAT) == []
    for n in range(3, 20):
        assert judge.dead(roll(unlinked("p", 1), unlinked("q", 1)), n * BEAT) == []
    assert names(judge.dead(roll(Peer("p", 0, False, "1"), alive("q", 2)), 20 * BEAT)) == ["p"]


def test_where_the_store_may_have_moved_a_peer_that_was_linked_there_can_be_killed_again():
    judge = Judge(moves=True)
    judge.dead(roll(unlinked("p", 1), unlinked("q", 1), linked=False), BEAT)
    for n in range(2, 6):
        assert judge.dead(roll(alive("p", n), unlinked("q", 1)), n * BEAT) == []
    assert judge.dead(roll(unlinked("p", 5), unlinked("q", 1)), 6 * BEAT) == []
    assert names(judge.dead(roll(unlinked("p", 5), unlinked("q", 1)), 7 * BEAT)) == ["p"]


def test_after_the_store_was_silent_everybody_gets_time_to_renew(judge):
    late = BEAT + 20
    assert judge.dead(roll(Peer("p", -8000, True, "1"), Peer("q", -8000, True, "1")), late) == []
    for n in range(1, 4):
        assert judge.dead(roll(Peer("p", -8000, True, "1"), alive("q", n)), late + n * BEAT) == []
    assert names(judge.dead(roll(Peer("p", -8000, True, "1"), alive("q", 9)), late + 4 * BEAT)) == ["p"]


def over(node, stamp):
    return Peer(node, -48_000, True, str(stamp))


def test_who_comes_first_after_the_store_was_away_gives_all_others_time_to_renew():
    judge = Judge()
    for n in range(2):
        assert judge.dead(roll(over("p", 1), over("q", 1), unlinked("r", 1)), n * BEAT) == []
    assert judge.dead(roll(over("p", 1), over("q", 1), alive("r", 2)), 2 * BEAT) == []
    assert names(judge.dead(roll(over("p", 1), alive("q", 2), alive("r", 3)), 3 * BEAT)) == ["p"]


def test_when_the_store_puts_its_clock_forward_everybody_gets_time_to_renew(judge):
    assert judge.dead(roll(alive("p", 1), alive("q", 1)), BEAT) == []
    assert judge.dead(roll(over("p", 2), over("q", 2)), 2 * BEAT) == []
    for n in range(3, 5):
        assert judge.dead(roll(over("p", 2), alive("q", n)), n * BEAT) == []
    assert names(judge.dead(roll(over("p", 2), alive("q", 5)), 5 * BEAT)) == ["p"]


def test_a_peer_that_comes_back_is_not_remembered_as_suspect(judge):
    judge.dead(roll(unlinked("p", 1)), BEAT)
    judge.dead(roll(alive("p", 1)), 2 * BEAT)
    assert judge.dead(roll(unlinked("p", 1)), 3 * BEAT) == []
