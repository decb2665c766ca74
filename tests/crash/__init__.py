"""Faults without root: killed processes, flipped bytes, interrupted calls, readers beside a writer."""
