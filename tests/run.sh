#!/usr/bin/env bash
# The gate: installs what the tests need, then runs all of them. Changes no tracked file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib.sh

step() { printf '\n== [%ss] %s\n' "$SECONDS" "$*"; }

# Clients that nobody here wrote, from PyPI and npm: outside the clone, once for each machine.
install_test_clients() {
    local tools="${XDG_CACHE_HOME:-$HOME/.cache}/posthouse-test-tools"
    mkdir -p "$tools"
    if ! "$tools/venv/bin/python3" -c 'import aiosmtplib' 2>/dev/null; then
        echo "installing aiosmtplib"
        python3 -m venv --clear "$tools/venv"
        "$tools/venv/bin/python3" -m pip install --quiet 'aiosmtplib>=4,<6'
    fi
    command -v npm >/dev/null || install_packages nodejs npm
    if ! NODE_PATH="$tools/node_modules" node -e 'require("nodemailer")' 2>/dev/null; then
        echo "installing nodemailer"
        # 7 runs on the Node of every supported Debian and Ubuntu; later ones ask for more.
        npm install --silent --no-audit --no-fund --prefix "$tools" nodemailer@7
    fi
}

step "tools"
install_build_tools
install_packages curl swaks msmtp s-nail python3 python3-venv procps openssl python3-aiosmtpd \
    strace eatmydata iproute2 nftables util-linux e2fsprogs keepalived haproxy nginx libnginx-mod-stream \
    libnet-ssleay-perl libio-socket-ssl-perl libauthen-sasl-perl
install_test_clients
set_build_environment
# Outside the clone, so that a machine that built once stays quick; a clone's own crates are always built anew.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/posthouse-target}"
mkdir -p "$CARGO_TARGET_DIR"
bash tests/third_party.sh "$CARGO_TARGET_DIR/third-party"

step "format"
cargo fmt --all --check

step "build"
cargo build --locked --workspace --all-targets

step "clippy"
# Checking needs no C++: an existing directory stands in for RocksDB's library, and a target directory of its own
# keeps that from disturbing the build.
ROCKSDB_LIB_DIR=/usr/lib CARGO_TARGET_DIR="$CARGO_TARGET_DIR/check" \
    cargo clippy --locked --workspace --all-targets -- -D warnings

step "documentation"
ROCKSDB_LIB_DIR=/usr/lib CARGO_TARGET_DIR="$CARGO_TARGET_DIR/check" RUSTDOCFLAGS="-D warnings" \
    cargo doc --locked --workspace --no-deps --quiet

step "licences, sources, bans"
# Beside the build cache, where a machine without it builds it once.
export PATH="$PATH:$CARGO_TARGET_DIR/cargo-deny/bin"
if ! cargo deny --version >/dev/null 2>&1; then
    cargo install --locked --quiet --root "$CARGO_TARGET_DIR/cargo-deny" cargo-deny
fi
cargo deny --offline --locked check bans licenses sources

step "tests"
# Some need root, for network namespaces and disks of their own.
tests='all()'
if [ "$(id -u)" != 0 ]; then
    echo "NOT RUN without root: vip, sick_nodes, storm (sudo -E tests/run.sh runs them)"
    tests='not (binary(vip) | binary(sick_nodes) | binary(storm))'
fi
# System tests start whole clusters: two at a time on a small machine.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --no-fail-fast --config-file tests/nextest.toml -E "$tests"
else
    cargo test --locked --workspace --no-fail-fast
fi

step "the README's first command"
bash tests/quickstart.sh
step "done"
