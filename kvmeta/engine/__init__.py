"""The embedded engine: a small LSM of fixed-width rows, one tree per dataset (`docs/format.md`)."""
