"""State that lives exactly as long as somebody is there to mean it, for Django Channels.

The modules in reading order; each imports only from those before it:

    errors       what can go wrong, with wire codes
    state        the nouns: Topic, Entry, Set, Clear, Drop, Change, Snapshot, Limits
    protocol     the wire, both ways
    conf         settings.EPHEMERAL_STATE as one typed, frozen object
    policy       who may do what; nobody, until the project says otherwise
    replica      one topic as this process sees it
    belongings   what this process's connections own, to be written back
    limits       how much one client may ask for
    outbox       what one slow subscriber still has to hear
    stores       where state is kept: base (the interface), memory, redis
    broadcast    group names, and publishing to a channel-layer group
    delivery     one socket's way out
    hub          the topics this process follows, and the fan-out to its sockets
    lease        being alive, and noticing who is not
    shutdown     being told that the process ends, where the server does not tell
    node         this process's seat: batches writes, publishes, sweeps on time
    connection   one WebSocket's rights and duties
    lifecycle    one WebSocket's comings and goings: nothing ends unnoticed
    revocation   asking again whether a user may: who has to be told, and how
    consumers    EphemeralStateMixin, SyncEphemeralStateMixin, EphemeralStateConsumer
    asgi         for the project's ASGI application: clear before the server stops
    api          the same verbs for views, tasks and commands

Importing the package itself imports nothing.
"""

__version__ = "0.1.0"
