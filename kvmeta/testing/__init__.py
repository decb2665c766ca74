"""Tools that try a store's promises: an engine in memory, and a simulator of whole clusters under faults.

python -m kvmeta.testing --seeds 1000      simulate; a seed that fails prints the line that replays it
"""
