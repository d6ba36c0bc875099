#!/bin/sh
# Generates, builds and runs the Java client: run.sh ADDRESS [STORE]
#
# ADDRESS is host:port of a running server, STORE the model store that it serves (default: model-store/). Builds below
# target/clients/java. Needs Java 17, Maven, and python3 to read the example. Maven fetches protoc and its gRPC plugin.
# Ends with an error when the answer is not what example.json says.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$root/target/clients/java
python=${SCONCE_TEST_PYTHON:-python3}
address=$1
store=${2:-$root/model-store}

mvn --batch-mode --quiet --file "$here/pom.xml" process-classes
"$python" "$here/../sample_row.py" "$store" > "$build/row"
{ read -r version; read -r row; read -r expected; } < "$build/row"
java -cp "$build/classes:$build/libraries/*" Client \
    "$address" "$root/deploy/grpc-service-config.json" "$version" "$row" "$expected"
