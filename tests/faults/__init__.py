"""What holds when layers lose messages, owners race and Redis is in trouble: real processes, real Redis.

    layers        channel layers that lose, delay and repeat
    asgi          what the server processes serve
    server        starting and ending them
    client        a client that takes nothing on trust
    person        a client in a process of its own, which can be frozen
    convergence   random operations from many sockets, then every view must equal the store
    races         two processes write the same keys at the same moment
    storm         two processes full of subscribers join one topic at once

The last three run by hand too, for longer: `python -m tests.faults.convergence --help`.
"""
