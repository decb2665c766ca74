"""Settings of every test run."""

from hypothesis import settings

# The first call of a kernel compiles or loads it, so no example has a deadline.
settings.register_profile("kvmeta", deadline=None)
settings.load_profile("kvmeta")
