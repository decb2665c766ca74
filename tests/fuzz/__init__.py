"""Fuzzing of everything that reads bytes: run by `make fuzz`, and replayed by the test suite."""
