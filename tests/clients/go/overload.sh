#!/bin/sh
# Builds and runs the Go client that overloads a server: overload.sh ADDRESS [CALLERS [SECONDS]]
#
# ADDRESS is host:port of a running server whose store has tests/fixtures/onnx/slow.onnx as the model `slow`. Needs what
# build.sh needs. Prints what came of the calls as one line of JSON; what it should be is for the reader to say.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)

"$here/build.sh" >&2
"$root/target/clients/go/bin/overload" "$1" "$root/deploy/grpc-service-config.json" "${2:-100}" "${3:-3}"
