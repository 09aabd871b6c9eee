#!/bin/bash
# Makes the Go files of this directory from its .proto files. It needs protoc 3.21
# or newer (Debian: protobuf-compiler); the plugins come from the Go module proxy.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
export GOBIN=$bin GOFLAGS=
go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
mkdir "$bin/kiln"
ln -s "$PWD" "$bin/kiln/v1alpha1"
module=github.com/kilnhq/kiln/api/v1alpha1
PATH=$bin:$PATH protoc -I "$bin" --go_out="$out" --go_opt=module=$module \
	--go-grpc_out="$out" --go-grpc_opt=module=$module "$bin"/kiln/v1alpha1/*.proto
sed -i -E 's,^(// [-\t ]*protoc  +)v.*,\1(any),' "$out"/*.pb.go
