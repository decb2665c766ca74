"""Hostile clients: attacks on a real `kvmeta serve`, a healthy client beside them."""
