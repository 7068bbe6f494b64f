#!/usr/bin/env bash
# The gate: installs what the tests need, then runs all of them. Changes no tracked file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/lib.sh

step() { printf '\n== [%ss] %s\n' "$SECONDS" "$*"; }

step "tools"
install_build_tools
install_packages curl swaks python3 procps libnet-ssleay-perl openssl python3-aiosmtpd
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
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --offline --locked check bans licenses sources
else
    echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"
fi

step "tests"
# System tests start whole clusters: two at a time on a small machine.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --no-fail-fast --config-file tests/nextest.toml
else
    cargo test --locked --workspace --no-fail-fast
fi

step "the README's first command"
bash tests/quickstart.sh
step "done"
