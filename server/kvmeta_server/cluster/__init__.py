"""The cluster: placement, replication, membership, moves."""
