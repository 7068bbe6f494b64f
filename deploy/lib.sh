# Shared by deploy/quickstart.sh and tests/run.sh: what a fresh Debian or Ubuntu needs before it can build.
# Sourced, never run.

# Runs a command as root: as it is for root, through sudo for others.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs the Debian packages among the arguments that are missing. Needs the network only when one is.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || { echo "error  please install: ${missing[*]}" >&2; return 1; }
    echo "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # The programs are wanted, not the services that some packages start at once (invoke-rc.d(8), policy-rc.d).
    local policy=/usr/sbin/policy-rc.d made=
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy" && made=yes; }
    local result=0
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || result=$?
    [ -z "$made" ] || as_root rm -f "$policy"
    return "$result"
}

# What every build needs: a C++ compiler and libclang for RocksDB, ccache so that a machine compiles it once.
install_build_tools() {
    install_packages g++ make libclang-dev ccache ca-certificates
    command -v cargo >/dev/null && return 0
    # Debian's and Ubuntu's own rustc is older than we need; the package for browsers is kept current.
    install_packages rustc-web cargo-web || install_packages rustc cargo
    command -v cargo >/dev/null || {
        echo "error  no Rust toolchain: install Rust 1.95 or later from https://rustup.rs" >&2
        return 1
    }
}

# One set of C and C++ flags for every profile, and a cache outside the clone: RocksDB's C++ is nine tenths of a
# cold build.
set_build_environment() {
    export CC="ccache gcc" CXX="ccache g++"
    export CCACHE_DIR="${CCACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/posthouse-ccache}" CCACHE_MAXSIZE=2G
    export CARGO_INCREMENTAL=0
    mkdir -p "$CCACHE_DIR"
}
