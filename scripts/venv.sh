#!/usr/bin/env bash
# The Python environment of the clients' tests: target/venv, made from tests/clients/requirements.txt.
# A stamp of both what is wanted and the Python at hand says whether it must be made again.
set -eu
cd "$(dirname "$0")/.."
wanted=tests/clients/requirements.txt
place=target/venv

mkdir -p target
exec 9>target/.venv.lock # one at a time
flock 9

stamp=$({ cat "$wanted"; python3 -c 'import sys; print(sys.version, sys.base_prefix)'; echo "$PWD"; } | sha256sum)
if [ "$(cat "$place/.stamp" 2>/dev/null)" = "$stamp" ]; then
    echo "venv: $place is there"
    exit 0
fi
echo "venv: making $place from $wanted"
rm -rf "$place"
python3 -m venv "$place"
"$place/bin/python" -m pip install --disable-pip-version-check --requirement "$wanted"
echo "$stamp" >"$place/.stamp"
