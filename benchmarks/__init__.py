"""Named scenarios, each measured beside a baseline in the same run: `python -m benchmarks NAME`."""
