#!/bin/sh
# Generates, builds and runs the Go client: run.sh ADDRESS [STORE]
#
# ADDRESS is host:port of a running server, STORE the model store that it serves (default: model-store/). Builds below
# target/clients/go. Needs Go and a Python ($SCONCE_TEST_PYTHON, else python3) with tests/clients/requirements.txt: protoc
# comes with grpcio-tools. Ends with an error when the answer is not what example.json says.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$root/target/clients/go
python=${SCONCE_TEST_PYTHON:-python3}
address=$1
store=${2:-$root/model-store}

PROTOC_GEN_GO=v1.36.12
PROTOC_GEN_GO_GRPC=v1.6.1

mkdir -p "$build"
export GOBIN="$build/bin/$PROTOC_GEN_GO-$PROTOC_GEN_GO_GRPC" # a new pin is a new folder
[ -x "$GOBIN/protoc-gen-go" ] || go install "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO"
[ -x "$GOBIN/protoc-gen-go-grpc" ] || go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC"

cp "$here/main.go" "$here/go.mod" "$here/go.sum" "$build/"
module=github.com/sconce-serving/sconce
PATH="$GOBIN:$PATH" "$python" -m grpc_tools.protoc -I"$root/proto" \
    --go_out="$build" --go_opt=module=$module --go-grpc_out="$build" --go-grpc_opt=module=$module \
    sconce/v1/inference.proto

(cd "$build" && go build -buildvcs=false -o bin/client .)
"$python" "$here/../sample_row.py" "$store" > "$build/row"
{ read -r version; read -r row; read -r expected; } < "$build/row"
"$build/bin/client" "$address" "$root/deploy/grpc-service-config.json" "$version" "$row" "$expected"
