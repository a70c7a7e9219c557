from tests.stores.contract import StoreContract


class TestStore(StoreContract):
    """For memory, for Redis, and for Redis with several partitions."""
