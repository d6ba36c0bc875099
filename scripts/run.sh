#!/usr/bin/env bash
# The last step of `make run`: the server in front, and behind it the plugin that it does not need in order to start.
#   scripts/run.sh ARGUMENTS OF sconce serve
set -u
cd "$(dirname "$0")/.."
export SCONCE_NATIVE_DIR="${SCONCE_NATIVE_DIR:-$PWD/native}"
log=target/torch-plugin.log

# A process group of its own (set -m), so that its compilers end with it. The server goes first: hence nice.
set -m
nice -n 19 scripts/torch-plugin.sh >"$log" 2>&1 </dev/null &
plugin=$!
set +m
trap 'kill -TERM -- "-$plugin" 2>/dev/null' EXIT
# What is newer than the plugin, or the plugin's absence.
newer=$(find backends/torch Cargo.lock -type f -newer native/libsconce_torch.so -print -quit 2>&1)
[ -z "$newer" ] || echo "TorchScript plugin: being fetched and built behind this (progress in $log)"

target/release/sconce serve "$@" &
server=$!
# The terminal sends Ctrl-C to the server as well, so it is not passed on; a `kill` reaches this shell alone, so it is.
trap : INT
trap 'kill -TERM "$server" 2>/dev/null' TERM HUP

# A signal ends `wait` early; what counts is the server's own end, which bash remembers.
while kill -0 "$server" 2>/dev/null; do wait "$server"; done
wait "$server"
