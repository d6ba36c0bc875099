#!/bin/sh
# Where the time of a request goes: a flamegraph of a core under load, in benches/flamegraph.svg.
# The server has one CPU, the generator another. Needs perf, and inferno (`cargo install inferno`).
set -eu
cd "$(dirname "$0")/.."

seconds=${SECONDS_PROFILED:-8}
in_flight=${IN_FLIGHT:-64}
out=${OUT:-benches/flamegraph.svg}

for tool in perf inferno-collapse-perf inferno-flamegraph taskset; do
    if ! command -v "$tool" > /dev/null; then
        echo "profile: $tool is missing; perf comes with linux-perf or linux-tools, inferno with \`cargo install inferno\`" >&2
        exit 1
    fi
done

cargo build --release --bin sconce
sconce=target/release/sconce

work=$(mktemp -d)
trap 'kill "$server" 2> /dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work/store/tiny/1"
cp tests/fixtures/onnx/tiny.onnx "$work/store/tiny/1/model.onnx"
cp tests/fixtures/onnx/tiny.json "$work/store/tiny/1/example.json"
taskset -c 0 "$sconce" serve --model-store "$work/store" --cores 1 --grpc-port 0 --grpc-admin-port 0 --http-port 0 \
    --metrics-port 0 --log-level warn --ports-file "$work/ports.json" > "$work/banner.txt" &
server=$!
# It says so when its models are ready.
while [ ! -s "$work/banner.txt" ]; do
    kill -0 "$server"
    sleep 0.1
done
port=$(sed 's/.*"grpc":\([0-9]*\).*/\1/' "$work/ports.json")

taskset -c 1 "$sconce" bench tiny --server "127.0.0.1:$port" --protocol oip --model-store "$work/store" --concurrency "$in_flight" \
    --duration "$((seconds + 4))s" > "$work/bench.txt" &
load=$!
sleep 3
for task in /proc/"$server"/task/*; do
    if [ "$(cat "$task/comm")" = core-0 ]; then core=${task##*/}; fi
done
# The stacks are copied: the build that is shipped has no frame pointers.
perf record --quiet --freq 997 --call-graph dwarf,8192 --tid "$core" --output "$work/perf.data" -- sleep "$seconds"
wait "$load"
perf script --no-inline --input "$work/perf.data" 2> /dev/null | inferno-collapse-perf --all 2> /dev/null > "$work/stacks.txt"
inferno-flamegraph --title "a core, tiny ONNX, $in_flight in flight" --minwidth 0.2 < "$work/stacks.txt" > "$out"
cat "$work/bench.txt"
echo "profile: $out"
