"""The service: one store behind gRPC, of `pip install "kvmeta[server]"`, started by `kvmeta serve`."""
