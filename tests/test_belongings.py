import pytest

from ephemeral_state.belongings import Belongings
from ephemeral_state.protocol import Event
from ephemeral_state.state import Change, Clear, Drop, Restore, Revision, Set, Topic

TOPIC = Topic("", "t")


class Owner:
    """Belongings that are told of writes the way a node tells them."""

    def __init__(self):
        self.belongings = Belongings()
        self.revision = 0

    def set(self, key, client="c", payload=b"", ttl_ms=None, node="n", now=0):
        self.revision += 1
        write = Set(client, TOPIC, key, payload, ttl_ms, node)
        self.belongings.wrote(write, [Change(TOPIC, key, client, payload, None, ttl_ms, 1, self.revision)], now)

    def hear(self, key, client, reason=None, revision=None, now=0):
        if revision is None:
            self.revision += 1
            revision = self.revision
        self.belongings.heard(TOPIC, [Event(key, client, b"", reason, None, "", Revision(1, revision))], now)

    def keys(self, now=0):
        return [restore.key for restore in self.belongings.restores(now)]


@pytest.fixture
def owner():
    return Owner()


def test_what_was_set_is_written_back_with_its_stamp_and_the_time_it_has_left(owner):
    owner.set("k", payload=b"x", ttl_ms=1000, now=100)
    assert owner.belongings.restores(400) == [Restore("c", TOPIC, "k", b"x", 700, "n", Revision(1, 1))]
    assert owner.belongings.restores(1100) == []


def test_what_has_no_connection_to_live_with_is_not_written_back(owner):
    owner.set("k", node="")
    assert owner.keys() == []


def test_a_clear_and_a_drop_take_it_away(owner):
    owner.set("a")
    owner.set("b")
    owner.set("c", client="other")
    owner.belongings.wrote(Clear("c", TOPIC, "a"), [], 0)
    owner.belongings.wrote(Clear("nobody", TOPIC, "b"), [], 0)
    assert owner.keys() == ["b", "c"]
    owner.belongings.wrote(Drop("c"), [], 0)
    assert owner.keys() == ["c"]
    owner.belongings.wrote(Drop("other"), [], 0)
    assert len(owner.belongings) == 0
    assert not owner.belongings._places


def test_a_key_taken_over_by_a_client_of_this_node_is_the_new_owners(owner):
    owner.set("k", client="a")
    owner.set("k", client="b")
    owner.belongings.wrote(Drop("a"), [], 0)
    assert [restore.client for restore in owner.belongings.restores(0)] == ["b"]


def test_a_key_taken_over_by_somebody_elses_client_is_theirs(owner):
    owner.set("k")
    owner.hear("k", "stranger", now=100)
    owner.belongings.expire(1000)
    assert len(owner.belongings) == 1  # not yet: it may be a former owner's, written back to a store that went back
    owner.belongings.expire(2100)
    assert owner.keys() == []


def test_what_is_heard_of_while_a_store_goes_back_takes_nothing_away(owner):
    owner.set("k")
    owner.hear("k", "former owner", now=100)
    owner.hear("k", "former owner", "explicit", now=200)
    assert owner.keys(now=500) == ["k"]  # written back: the store decides
    owner.belongings.expire(5000)
    assert owner.keys(now=5000) == ["k"]


def test_a_key_that_was_taken_over_and_is_set_again_is_ours(owner):
    owner.set("k")
    owner.hear("k", "stranger", now=100)
    owner.set("k", now=200)
    owner.belongings.expire(5000)
    assert owner.keys(now=5000) == ["k"]


def test_what_was_heard_late_takes_nothing_away(owner):
    owner.hear("k", "stranger", revision=1)
    owner.revision = 1
    owner.set("k")
    owner.hear("k", "stranger", revision=1)
    assert owner.keys() == ["k"]


def test_being_thought_dead_takes_nothing_away_but_expiry_and_a_clear_from_elsewhere_do(owner):
    for key in "abc":
        owner.set(key)
    owner.hear("a", "c", "disconnect")
    owner.hear("b", "c", "expired")
    owner.hear("c", "c", "explicit")
    assert owner.keys() == ["a"]


def test_what_expires_unheard_of_does_not_pile_up(owner):
    owner.set("stays")
    for n in range(20_000):
        owner.set(f"{n}", client=f"c{n % 7}", ttl_ms=50, now=n)
        if n % 500 == 0:  # a beat
            owner.belongings.expire(n)
        assert len(owner.belongings) <= 1551
    assert owner.keys(now=19_999) == ["stays", *(f"{n}" for n in range(19_950, 20_000))]
    for client in ["c", *(f"c{n}" for n in range(7))]:
        owner.belongings.wrote(Drop(client), [], 0)
    owner.belongings.expire(22_000)
    assert (len(owner.belongings), owner.belongings._places, owner.belongings._due) == (0, {}, {})


def test_what_was_set_again_is_kept_for_its_new_time(owner):
    for key in ("longer", "for ever", "not again"):
        owner.set(key, ttl_ms=5000)
    owner.set("longer", ttl_ms=60_000, now=4000)
    owner.set("for ever", ttl_ms=None, now=4000)
    owner.belongings.expire(5999)
    assert len(owner.belongings) == 3
    owner.belongings.expire(6000)
    assert owner.keys(6000) == ["longer", "for ever"]
    owner.belongings.expire(65_000)
    assert len(owner.belongings) == 1
