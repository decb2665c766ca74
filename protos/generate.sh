#!/usr/bin/env bash
# Checks the protocol and generates its Python code: generate.sh BIN [OUT]. `make protos` calls it with the tools' venv.
# OUT is where the package kvmeta.v1 goes, by default this repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$1
out=${2:-$here/..}
"$bin/buf" lint "$here"
"$bin/buf" format --exit-code --diff "$here"
"$bin/buf" breaking "$here" --against "$here/../tests/fixtures/protocol-v1.binpb"
mkdir -p "$out/kvmeta/v1" "$out/server/kvmeta_server/cluster"
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I "$here" \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" kvmeta/v1/{kvmeta,peer,cluster}.proto
"$bin/python" -m grpc_tools.protoc -I "$here/etcd" --python_out="$out/server/kvmeta_server/cluster" \
  --pyi_out="$out/server/kvmeta_server/cluster" etcd_rpc.proto
