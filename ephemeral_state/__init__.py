"""State that lives exactly as long as somebody is there to mean it, for Django Channels.

The modules in reading order; each imports only from those before it:

    errors         what can go wrong, with wire codes
    state          the nouns: Topic, Entry, Set, Clear, Drop, Change, Snapshot, Limits
    tally          what is counted, for whoever measures it
    steps          the first step of a coroutine in place, where a task may not be needed
    pause          a sleep that somebody else may end
    log            what operators read: a line, a name and fields
    tracing        spans, where OpenTelemetry is installed
    protocol       the wire, both ways
    printing       names and payloads as text that is safe to show
    conf           settings.EPHEMERAL_STATE as one typed, frozen object
    policy         who may do what; nobody, until the project says otherwise
    replica        one topic as this process sees it
    belongings     what this process's connections own, to be written back
    limits         how much one client may ask for
    outbox         what one subscriber still has to hear
    signals        Django's signals for what is set and cleared
    stores         where state is kept: base (the interface), memory, redis
    broadcast      group names, and publishing to a channel-layer group
    delivery       one socket's way out
    answers        what a client has yet to be told of its sets
    hub            the topics this process follows, and the fan-out to its sockets
    lease          being alive, and noticing who is not
    writer         batches of writes to the store, and what they changed to the layer
    journal        what people may want to know: counts, transitions, who is connected
    shutdown       being told that the process ends, where the server does not tell
    node           this process's seat: ties these together, sweeps on time, writes back
    background     an event loop for sync callers that have none
    connection     one owner's rights and duties
    lifecycle      one WebSocket's comings and goings: nothing ends unnoticed
    hold, watch    an owner, and a subscriber, that are no WebSocket
    overdue        leases that are over, for processes that have none of their own
    gate           what is too much for one client, and what becomes of it
    revocation     asking again whether a user may: who has to be told, and how
    consumers      EphemeralStateMixin, SyncEphemeralStateMixin, EphemeralStateConsumer
    asgi           for the project's ASGI application: clear before the server stops
    api            the same verbs for views, tasks and commands
    inspection     the state of processes, and clearing, for the next two
    models, admin  what is live, for people with a browser
    management     the same for people with a terminal, and the doctor
    metrics        what is counted, for OpenTelemetry
    checks, apps   Django's way in
    testing        for the tests of projects

Importing the package itself imports nothing.
"""

__version__ = "0.1.0"
