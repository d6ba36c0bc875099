#!/usr/bin/env bash
# A minute to watch: a bad version of a sample model goes in by a canary, and is judged and undone. Ends with 0 if it was.
#   scripts/demo-canary.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
export SCONCE_NATIVE_DIR="${SCONCE_NATIVE_DIR:-$PWD/native}"
sconce=$(realpath "${1:-target/release/sconce}")
model=early-signal stable=1.1.0 bad=1.2.0
work=$(mktemp -d)
# The server and the load end with this, however it ends.
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Only what git knows: a server that runs beside this keeps its own state there.
mkdir -p "$work/store/$model"
for file in model-store/"$model"/model.yaml model-store/"$model"/"$stable"; do
    [ ! -e "$file" ] || cp -r "$file" "$work/store/$model/"
done

# The bad one: version 1.1.0, but for the largest leaf of the first tree, which is not a number any more. Zeros before its
# neighbour keep the length, which tree_sizes has.
make_bad() {
    mkdir -p "$work/$model/$bad"
    cp "model-store/$model/$stable/normalizer.json" "$work/$model/$bad/"
    sed -n '/^inputs:/,/^classes:/p; /^normalizer:/p' "model-store/$model/$stable/version.yaml" >"$work/$model/$bad/version.yaml"
    python3 - "model-store/$model/$stable/model.txt" "$work/$model/$bad/model.txt" <<'PYTHON'
import re, sys
text = open(sys.argv[1]).read()
counts = [int(count) for count in re.search(r"^leaf_count=(.*)$", text, re.M)[1].split()]
leaves = re.search(r"^leaf_value=(.*)$", text, re.M)
values = leaves[1].split()
place = counts.index(max(counts))
neighbour = place + 1 if place + 1 < len(values) else place - 1
sign, digits = re.fullmatch(r"(-?)(.*)", values[neighbour]).groups()
values[neighbour] = sign + "0" * (len(values[place]) - len("nan")) + digits
values[place] = "nan"
open(sys.argv[2], "w").write(text[: leaves.start(1)] + " ".join(values) + text[leaves.end(1) :])
PYTHON
}

# As one row of features a line, around the means of those that the model was trained with.
make_rows() {
    python3 - "model-store/$model/$stable/normalizer.json" "$work/rows.jsonl" <<'PYTHON'
import json, random, sys
known = json.load(open(sys.argv[1]))
random.seed(1)
features = list(zip(known["feature_names"], known["mean"], known["scale"]))
with open(sys.argv[2], "w") as rows:
    for _ in range(256):
        rows.write(json.dumps({name: random.gauss(mean, scale) for name, mean, scale in features}) + "\n")
PYTHON
}

say() { printf '\n== %s\n' "$*"; }

say "a server over a copy of the sample model $model, whose stable is $stable"
"$sconce" serve --model-store "$work/store" --grpc-port 0 --grpc-admin-port 0 --http-port 0 --metrics-port 0 \
    --ports-file "$work/ports.json" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 300); do
    [ -e "$work/ports.json" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log"; exit 1; }
    sleep 0.1
done
port() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/ports.json" "$1"; }
export SCONCE_ADMIN_SERVER="127.0.0.1:$(port grpc_admin)" SCONCE_SERVER="127.0.0.1:$(port grpc)"

say "two hundred calls a second, which name no version"
make_rows
"$sconce" bench "$model" --data "$work/rows.jsonl" --rate 200 --duration 110s --json >"$work/load.json" 2>"$work/load.log" &
load=$!

say "version $bad comes into the store: some of its answers will be no numbers. Nobody has tried it with such data, so it loads"
make_bad
"$sconce" promote "$model" "$stable" --reason 'who answers now'
"$sconce" publish "$work/$model/$bad" --to "$work/store"

say "sconce deploy $model $bad --steps 5,25,50,100 --hold 5s"
"$sconce" deploy "$model" "$bad" --steps 5,25,50,100 --hold 5s --min-samples 50 --reason 'the demo'
say "sconce rollout status $model --watch"
status=0
"$sconce" rollout status "$model" --watch || status=$?

say "and what callers get now"
"$sconce" describe "$model"
kill -0 "$load" 2>/dev/null || { cat "$work/load.log"; exit 1; }
if [ "$status" = 1 ]; then
    say "undone: $bad is rejected, $stable answers everybody"
else
    say "it was not undone: sconce rollout status ended with $status"
    exit 1
fi
