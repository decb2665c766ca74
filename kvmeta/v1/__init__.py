"""Generated from protos/kvmeta/v1/kvmeta.proto by `make protos`; never edited."""
