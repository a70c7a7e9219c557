"""A room full of sockets: the servers that are compared, and how a comparison runs.

`settings.py`, `ours.py`, `handwritten.py`, `bare.py` are what the servers serve, `servers.py` starts them, `load.py`
runs a script of `benchmarks/load/` against one, `rounds.py` interleaves the runs, `report.py` compares and writes down.
"""
