#!/usr/bin/env bash
# Runs the README's first command twice, resumes its directory, then runs every command of the README's first
# screen against the running cluster, as a newcomer would type them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$(mktemp -d /tmp/posthouse-quickstart-test.XXXXXX)
offset=11000
quickstart=
cleanup() {
    [ -n "$quickstart" ] && kill -TERM "$quickstart" 2>/dev/null && wait "$quickstart" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT
fail() { echo "FAILED  $*" >&2; exit 1; }

for turn in first second; do
    "$root/deploy/quickstart.sh" --once --dir "$dir/state" --port-offset $offset >"$dir/$turn.out" 2>&1 ||
        { tail -40 "$dir/$turn.out"; fail "the $turn quickstart --once"; }
    [ ! -e "$dir/state/cluster.env" ] || fail "cluster.env of a stopped cluster was left behind"
done
grep -q "resuming it" "$dir/second.out" || fail "the second run did not resume the first one's directory"

"$root/deploy/quickstart.sh" --dir "$dir/state" --port-offset $offset >"$dir/run.out" 2>&1 &
quickstart=$!
for _ in $(seq 600); do [ -e "$dir/state/cluster.env" ] && break; sleep 0.1; done
[ -e "$dir/state/cluster.env" ] || { tail -40 "$dir/run.out"; fail "cluster.env was not written"; }

# Every variable that scripts rely on, and the processes behind them.
. "$dir/state/cluster.env"
for name in PH_SMTP PH_SUBMISSION PH_SUBMISSIONS PH_CTL PH_CA PH_USER PH_PASSWORD PH_RELAY_SOURCE PH_DOMAIN \
    PH_SINK_MAILDIR PH_NODE_n1_PID PH_NODE_n2_PID PH_NODE_n3_PID PH_FRONT_PID PH_NODE_n1_HTTP PH_NODE_n2_HTTP \
    PH_NODE_n3_HTTP PH_FRONT_HTTP PH_NODE_n1_SMTP PH_NODE_n2_SMTP PH_NODE_n3_SMTP PH_NODE_n1_CMD PH_NODE_n2_CMD \
    PH_NODE_n3_CMD; do
    [ -n "${!name:-}" ] || fail "cluster.env does not set $name"
done
for pid in $PH_NODE_n1_PID $PH_NODE_n2_PID $PH_NODE_n3_PID $PH_FRONT_PID; do
    grep -q posthouse "/proc/$pid/cmdline" || fail "process $pid is not posthouse itself"
done

# The commands of the README that use $PH_CTL, in order.
mapfile -t commands < <(awk '/^```sh/{code=1;next} /^```/{code=0} code && /^\$PH_CTL/' "$root/README.md")
[ ${#commands[@]} -ge 7 ] || fail "the README's commands were not found"
for command in "${commands[@]}"; do
    eval "$command" >"$dir/command.out" 2>&1 || { cat "$dir/command.out"; fail "README: $command"; }
    echo "ok  $command"
done

# The credential it made, on both services; a wrong password; a listed device and a stranger.
post() {  # post URL [curl's flags]: the last reply that curl heard
    printf 'From: a@%s\r\nSubject: quickstart\r\n\r\nhello\r\n' "$PH_DOMAIN" |
        curl -sS -v --max-time 20 --cacert "$PH_CA" --mail-from "a@$PH_DOMAIN" --mail-rcpt somebody@partner.example \
            --upload-file - "$@" 2>&1 || true
}
post "smtp://localhost:${PH_SUBMISSION##*:}" --ssl-reqd --user "$PH_USER:$PH_PASSWORD" >"$dir/587.out"
grep -q '< 250 2.6.0' "$dir/587.out" || { cat "$dir/587.out"; fail "the credential over STARTTLS"; }
post "smtps://localhost:${PH_SUBMISSIONS##*:}" --user "$PH_USER:$PH_PASSWORD" >"$dir/465.out"
grep -q '< 250 2.6.0' "$dir/465.out" || { cat "$dir/465.out"; fail "the credential over implicit TLS"; }
post "smtps://localhost:${PH_SUBMISSIONS##*:}" --user "$PH_USER:not-$PH_PASSWORD" >"$dir/wrong.out"
grep -q '< 535 5.7.3' "$dir/wrong.out" || { cat "$dir/wrong.out"; fail "a wrong password"; }
post "smtp://$PH_SMTP" --interface "${PH_RELAY_SOURCE%.*}.77" >"$dir/listed.out"
grep -q '< 250 2.6.0' "$dir/listed.out" || { cat "$dir/listed.out"; fail "a device of PH_RELAY_SOURCE"; }
post "smtp://$PH_SMTP" --interface 127.0.9.9 >"$dir/stranger.out"
grep -q '< 550 5.7.54' "$dir/stranger.out" || { cat "$dir/stranger.out"; fail "a stranger"; }
echo "ok  the credential, a listed device, a stranger"

# A node that dies stops nothing else; its command starts it again from anywhere.
kill -KILL "$PH_NODE_n2_PID"
sleep 1
kill -0 "$quickstart" || fail "the quickstart ended with a node"
curl -fsS "http://$PH_FRONT_HTTP/readyz" >/dev/null || fail "the front is not ready with one node gone"
(cd / && exec $PH_NODE_n2_CMD) >"$dir/n2.again.log" 2>&1 &
again=$!
for _ in $(seq 300); do curl -fsS "http://$PH_NODE_n2_HTTP/readyz" >/dev/null 2>&1 && break; sleep 0.1; done
curl -fsS "http://$PH_NODE_n2_HTTP/readyz?verbose" || fail "the restarted node is not ready"
kill -TERM $again
wait $again || fail "the restarted node did not end cleanly"

kill -TERM "$quickstart"
wait "$quickstart" && fail "SIGTERM should be told from success" || true
quickstart=
for pid in $PH_NODE_n1_PID $PH_NODE_n3_PID $PH_FRONT_PID; do
    kill -0 "$pid" 2>/dev/null && fail "process $pid was left behind"
done
[ ! -e "$dir/state/cluster.env" ] || fail "cluster.env of a stopped cluster was left behind"

# Ctrl-C does what SIGTERM does. (A shell's background jobs ignore SIGINT; this one does not.)
python3 -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])' \
    "$root/deploy/quickstart.sh" --dir "$dir/state" --port-offset $offset >"$dir/interrupted.out" 2>&1 &
quickstart=$!
for _ in $(seq 600); do [ -e "$dir/state/cluster.env" ] && break; sleep 0.1; done
. "$dir/state/cluster.env"
kill -INT "$quickstart"
wait "$quickstart" && fail "Ctrl-C should be told from success" || true
quickstart=
for pid in $PH_NODE_n1_PID $PH_NODE_n2_PID $PH_NODE_n3_PID $PH_FRONT_PID; do
    kill -0 "$pid" 2>/dev/null && fail "process $pid was left behind by Ctrl-C"
done
echo "1 passed, 0 failed"
