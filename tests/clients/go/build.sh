#!/bin/sh
# Generates the code of sconce.v1 and builds the Go clients below target/clients/go/bin.
#
# Needs Go and a Python ($SCONCE_TEST_PYTHON, else python3) with tests/clients/requirements.txt: protoc comes with
# grpcio-tools. Two at once take turns.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$root/target/clients/go
python=${SCONCE_TEST_PYTHON:-python3}

PROTOC_GEN_GO=v1.36.12
PROTOC_GEN_GO_GRPC=v1.6.1

mkdir -p "$build/overload"
exec 9> "$build/lock"
flock 9

export GOBIN="$build/bin/$PROTOC_GEN_GO-$PROTOC_GEN_GO_GRPC" # a new pin is a new folder
[ -x "$GOBIN/protoc-gen-go" ] || go install "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO"
[ -x "$GOBIN/protoc-gen-go-grpc" ] || go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC"

cp "$here/main.go" "$here/go.mod" "$here/go.sum" "$build/"
cp "$here/overload/main.go" "$build/overload/"
module=github.com/sconce-serving/sconce
PATH="$GOBIN:$PATH" "$python" -m grpc_tools.protoc -I"$root/proto" \
    --go_out="$build" --go_opt=module=$module --go-grpc_out="$build" --go-grpc_opt=module=$module \
    sconce/v1/inference.proto

cd "$build"
go build -buildvcs=false -o bin/client .
go build -buildvcs=false -o bin/overload ./overload
