#!/usr/bin/env bash
# Fetches libtorch, builds the TorchScript plugin and puts it where the server looks: native/libsconce_torch.so.
# Repeats in a second when nothing changed.
#   scripts/torch-plugin.sh [--workspace]     --workspace builds all else on the way
set -eu
cd "$(dirname "$0")/.."

scripts/native.py torch
cargo build --release "${1:---package=sconce-torch}"

# A rename, so that a server that looks just now finds the old plugin, the new one or none, and never a half of one.
built=target/release/libsconce_torch.so
place=native/libsconce_torch.so
if ! cmp --silent "$built" "$place"; then
    trap 'rm -f "$place.$$"' EXIT
    cp "$built" "$place.$$"
    mv "$place.$$" "$place"
fi
echo "torch plugin: $place is ready"
