#!/bin/sh
# Builds and runs the Go client: run.sh ADDRESS [STORE]
#
# ADDRESS is host:port of a running server, STORE the model store that it serves (default: model-store/). Needs what build.sh
# needs. Ends with an error when the answer is not what example.json says.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$root/target/clients/go
python=${SCONCE_TEST_PYTHON:-python3}
address=$1
store=${2:-$root/model-store}

"$here/build.sh"
"$python" "$here/../sample_row.py" "$store" > "$build/row"
{ read -r version; read -r row; read -r expected; } < "$build/row"
"$build/bin/client" "$address" "$root/deploy/grpc-service-config.json" "$version" "$row" "$expected"
