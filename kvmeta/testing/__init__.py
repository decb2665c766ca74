"""For tests of code that uses kvmeta: a store in memory that keeps every promise of one on disk.

    from kvmeta.testing.memory import MemoryStore

It needs the engine's packages (`pip install "kvmeta[engine]"`), no directory and no cleaning up.
"""
