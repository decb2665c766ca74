"""The systems under comparison, one adapter each; system.py says what an adapter is."""
