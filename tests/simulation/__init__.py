"""A whole cluster in one process, in simulated time, with everything going wrong that a seed asks for.

    python -m tests.simulation                          # one hour of a cluster's life, with a fresh seed
    python -m tests.simulation --seed 7 --hours 1       # the same hour, again and again
    python -m tests.simulation --minutes 2              # fresh seeds for two minutes of real time, as CI does
    python -m tests.simulation --replay history.jsonl    # a history that was shrunk and kept, as those in `kept`

What is real: the consumer, connections, hub, writer, node, lease, the Redis store, its client library redis-py, the Lua
scripts and the Redis that runs them. What is simulated, and where:

`world`      time, and turns. Each process of the cluster is an event loop (`loop`) that takes one step when it is its
             turn; the seed decides between those that could go on. Time jumps to the next thing that happens.
`network`    connections like those of TCP: bytes arrive late, in order within a connection, and also after the process
             that sent them has closed it.
`server`     Redis as the network sees it: accepts connections, restarts, goes back to earlier data, is paused. Each
             command goes to a real Redis at the moment it arrives; scripts get the simulated time for `TIME` and for
             the expiry of keys.
`layer`      a channel layer that loses, doubles and reorders.
`process`    one server process: freezes, dies, is ended; what is global in a real process is its own.
`person`     one client at its WebSocket.
`model`      what must be true after what the clients were answered. It knows nothing else.
`history`    what clients do and what goes wrong, as a list made from the seed.
`run`        carries a history out; `shrink` finds the shortest one that still fails.

Everything random comes from the seed: two runs of one seed do the same things in the same order.
"""
