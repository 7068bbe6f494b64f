#!/usr/bin/env bash
# Fetches next hops that the tests use and that must not be installed, because they would start a mail server of their
# own: unpacks Postfix's smtp-sink into the directory that is named.
set -euo pipefail
into=$1
[ -x "$into/usr/sbin/smtp-sink" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "skipped: no apt-get, so no smtp-sink"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! (cd "$work" && apt-get download -qq postfix >/dev/null 2>&1); then
    echo "skipped: postfix cannot be fetched, so no smtp-sink"
    exit 0
fi
dpkg-deb -x "$work"/postfix_*.deb "$work/unpacked"
mkdir -p "$into/usr/sbin" "$into/usr/lib"
cp -r "$work/unpacked/usr/lib/postfix" "$into/usr/lib/"
cp "$work/unpacked/usr/sbin/smtp-sink" "$into/usr/sbin/"
