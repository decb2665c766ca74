"""The simulator: whole clusters of production nodes in one process, on simulated time, under faults.

`python -m kvmeta_server.simulator --seeds 1000` runs many; a seed that fails prints the line that replays it.
Nothing imports it but tests.
"""
