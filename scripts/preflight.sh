#!/usr/bin/env bash
# Says within a second whether this machine can build Sconce, and if not, what is missing and the command that gets it.
#   scripts/preflight.sh [lint|test]      what these need beyond a build is looked for too
set -u
cd "$(dirname "$0")/.."
goal=${1:-build}

unsupported() {
    echo "preflight: this system cannot run Sconce: $1" >&2
    exit 1
}

# at_least WANTED FOUND: dotted numbers
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# --- The system: nothing can be installed to change it. The native libraries are manylinux_2_28 builds for x86_64.

system="$(uname -s) $(uname -m)"
[ "$system" = "Linux x86_64" ] ||
    unsupported "it is $system, and the native libraries are for Linux x86_64. A container or VM of that kind will do."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)
[ -n "$glibc" ] ||
    unsupported "it has no glibc (Alpine and other musl systems have not). Debian 10, Ubuntu 20.04, RHEL 8 or newer will do."
at_least 2.28 "$glibc" ||
    unsupported "its glibc is $glibc, and 2.28 or newer is needed. Debian 10, Ubuntu 20.04, RHEL 8 or newer will do."

# --- What can be installed: all of it is named at once.

missing=()  # what, in words
packages=() # of the distribution
commands=() # other ways

if command -v dnf >/dev/null; then
    install="sudo dnf install -y" cxx_package=gcc-c++
else
    install="sudo apt-get install -y" cxx_package=g++
fi

rustup="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""

# rust-version in Cargo.toml is the one place that says which Rust is old enough.
rust_wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
if ! command -v cargo >/dev/null || ! rust_found=$(rustc --version 2>/dev/null); then
    missing+=("Rust $rust_wanted or newer (cargo, rustc)")
    commands+=("$rustup")
else
    rust_found=$(echo "$rust_found" | cut -d' ' -f2)
    if ! at_least "$rust_wanted" "$rust_found"; then
        missing+=("Rust $rust_wanted or newer (found $rust_found)")
        commands+=("rustup update stable  (or, where Rust is the distribution's: $rustup)")
    fi
fi

# The headers of libtorch ask for g++ 9. Its package also brings cc, the linker Rust uses, and libgomp, which LightGBM uses.
if ! command -v g++ >/dev/null || ! command -v cc >/dev/null; then
    missing+=("g++ 9 or newer, and cc")
    packages+=("$cxx_package")
elif ! at_least 9 "$(g++ -dumpversion)"; then
    missing+=("g++ 9 or newer (found $(g++ -dumpversion))")
    commands+=("(a newer compiler of the distribution, such as gcc-toolset-13 on RHEL; it must be the g++ on the PATH)")
fi

# The native libraries' wheels are only unpacked, so any Python will do; the clients' packages want a newer one.
[ "$goal" = test ] && python_wanted=3.11 || python_wanted=3.9
python_has() { python3 -c "import $1" 2>/dev/null; }
if ! command -v python3 >/dev/null; then
    missing+=("python3 $python_wanted or newer, with pip")
    packages+=(python3 python3-pip)
    [ "$goal" != test ] || packages+=(python3-venv)
elif ! at_least "$python_wanted" "$(python3 -c 'import platform; print(platform.python_version())')"; then
    missing+=("python3 $python_wanted or newer (found $(python3 --version))")
    commands+=("(a newer Python of the distribution, pyenv or uv; it must be the python3 on the PATH)")
elif [ -z "${NATIVE_FROM:-}" ] && ! python_has pip; then # wheels from a folder need no pip
    missing+=("pip for python3")
    packages+=(python3-pip)
fi

case $goal in
lint)
    for tool in fmt clippy; do
        cargo $tool --version >/dev/null 2>&1 || {
            missing+=("cargo $tool")
            commands+=("rustup component add rustfmt clippy")
        }
    done
    ;;
test) # the clients' tests have a Python environment of their own; Debian packs what makes one separately
    if command -v python3 >/dev/null && ! python_has "ensurepip, venv"; then
        missing+=("python3's venv module")
        packages+=(python3-venv)
    fi
    ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0

echo "preflight: missing on this machine:" >&2
printf '  - %s\n' "${missing[@]}" >&2
echo "get them with:" >&2
[ ${#packages[@]} -eq 0 ] || echo "  $install ${packages[*]}" >&2
[ ${#commands[@]} -eq 0 ] || printf '  %s\n' "${commands[@]}" | uniq >&2
exit 1
