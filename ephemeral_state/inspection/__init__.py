"""Shared by the admin and the command: reads the state of processes, clears entries, and writes times as text.

processes  the processes that hold a lease, and the state of each
clearing   clears entries for the owners that were seen
times      durations as text
"""
