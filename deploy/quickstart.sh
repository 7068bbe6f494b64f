#!/usr/bin/env bash
# Builds Posthouse, starts three nodes and a front on loopback, and relays a real letter. README's first command.
set -euo pipefail

usage() {
    cat <<'END'
Usage: deploy/quickstart.sh [--once] [--dir DIR] [--port-offset N]

Builds Posthouse, starts a cluster of three nodes and a front on loopback, sends a letter through the front and
shows where it went. Stays in the foreground until Ctrl-C, then stops everything it started.

  --once            send the letter, stop again, and exit 0 only if it arrived
  --dir DIR         where the cluster keeps its state (default ~/.local/state/posthouse-quickstart);
                    a directory that was used before is resumed. DIR/cluster.env describes the running cluster
  --port-offset N   add N to every port, to run a second cluster beside the first (default 0)
  -h, --help        this text
END
}

once=false offset=0
dir="${XDG_STATE_HOME:-$HOME/.local/state}/posthouse-quickstart"
while [ $# -gt 0 ]; do
    case "$1" in
        --once) once=true ;;
        --dir) [ $# -ge 2 ] || { echo "error  --dir needs a directory" >&2; exit 2; }; dir=$2; shift ;;
        --dir=*) dir=${1#--dir=} ;;
        --port-offset) [ $# -ge 2 ] || { echo "error  --port-offset needs a number" >&2; exit 2; }; offset=$2; shift ;;
        --port-offset=*) offset=${1#--port-offset=} ;;
        -h|--help) usage; exit 0 ;;
        *) echo "error  unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
case "$offset" in *[!0-9]*|'') echo "error  --port-offset needs a number, not \"$offset\"" >&2; exit 2 ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/deploy/lib.sh"
say() { printf '\n== %s\n' "$*"; }
die() { printf 'error  %s\n' "$*" >&2; exit 1; }

mkdir -p "$dir"
chmod 700 "$dir"
dir=$(cd "$dir" && pwd)
rm -f "$dir/cluster.env"

# ---- Build --------------------------------------------------------------------------------------------------------
say "1/5 tools and release build (the first build compiles RocksDB: about 15 minutes on two cores, later ones seconds)"
install_build_tools
install_packages curl
set_build_environment
target=${CARGO_TARGET_DIR:-$root/target}
(cd "$root" && cargo build --release --locked -p posthouse-node -p posthouse-ctl)
posthouse=$target/release/posthouse
posthousectl=$target/release/posthousectl

# ---- Addresses ----------------------------------------------------------------------------------------------------
port() { echo $(( $1 + offset )); }
front_smtp=127.0.0.1:$(port 2525) front_submission=127.0.0.1:$(port 2587) front_submissions=127.0.0.1:$(port 2465)
front_http=127.0.0.1:$(port 9100) sink=127.0.0.1:$(port 2526)
# The front dials nodes from an address of its own, so that another process on 127.0.0.1 is a stranger to them.
front_source=127.0.0.2
rpc() { echo 127.0.0.1:$(port $(( 7100 + $1 ))); }
http() { echo 127.0.0.1:$(port $(( 9100 + $1 ))); }
smtp() { echo 127.0.0.1:$(port $(( 2525 + 1000 * $1 ))); }
submission() { echo 127.0.0.1:$(port $(( 2587 + 1000 * $1 ))); }
submissions() { echo 127.0.0.1:$(port $(( 2465 + 1000 * $1 ))); }
listening() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }
for address in "$front_smtp" "$front_submission" "$front_submissions" "$sink" "$(rpc 1)" "$(rpc 2)" "$(rpc 3)"; do
    if listening "$address"; then
        die "something listens on $address already: another quickstart? Stop it, or use --port-offset 100 --dir OTHER"
    fi
done

# ---- Start and stop -----------------------------------------------------------------------------------------------
declare -A pid=()
sleeper=
stop() {
    trap - EXIT INT TERM
    local name
    for name in front n1 n2 n3 sink; do
        if [ -n "${pid[$name]:-}" ]; then kill -TERM "${pid[$name]}" 2>/dev/null || true; fi
    done
    local deadline=$(( SECONDS + 40 ))
    for name in "${!pid[@]}"; do
        while kill -0 "${pid[$name]}" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
        kill -KILL "${pid[$name]}" 2>/dev/null || true
    done
    for name in "${!pid[@]}"; do wait "${pid[$name]}" 2>/dev/null || true; done
    [ -n "$sleeper" ] && kill "$sleeper" 2>/dev/null
    rm -f "$dir/cluster.env"
}
trap 'stop' EXIT
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM

launch() { # name, command...
    local name=$1
    shift
    "$@" >>"$dir/$name.log" 2>&1 &
    pid[$name]=$!
}
# Waits until a command succeeds. $1: seconds, $2: what it is waiting for, $3: whose log to show; then the command.
await() {
    local deadline=$(( SECONDS + $1 )) what=$2 name=$3
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ! kill -0 "${pid[$name]}" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
            tail -n 20 "$dir/$name.log" >&2
            die "$what did not happen; the end of $dir/$name.log is above"
        fi
        sleep 0.1
    done
}

say "2/5 three nodes, a front and a mail sink in $dir"
launch sink "$posthouse" sink --listen "$sink" --maildir "$dir/maildir"
for n in 1 2 3; do
    mkdir -p "$dir/n$n"
    cat > "$dir/n$n/node.toml" <<END
[node]
name = "n$n"
data_dir = "$dir/n$n/data"
fqdn = "n$n.posthouse.example"
socket = "$dir/n$n/node.sock"
http = "$(http $n)"

[cluster]
listen = "$(rpc $n)"

[[smtp]]
listen = "$(smtp $n)"
service_port = 25

[[smtp]]
listen = "$(submission $n)"
service_port = 587

[[smtp]]
listen = "$(submissions $n)"
service_port = 465
END
    launch "n$n" "$posthouse" node --config "$dir/n$n/node.toml"
done
mkdir -p "$dir/front"
cat > "$dir/front/front.toml" <<END
[front]
name = "front1"
data_dir = "$dir/front/data"
socket = "$dir/front/front.sock"
dial_from = "$front_source"
http = "$front_http"

[[listen]]
address = "$front_smtp"
service_port = 25

[[listen]]
address = "$front_submission"
service_port = 587

[[listen]]
address = "$front_submissions"
service_port = 465
implicit_tls = true
END
launch front "$posthouse" front --config "$dir/front/front.toml"

# ---- Init and join ------------------------------------------------------------------------------------------------
export POSTHOUSECTL_CONFIG_DIR="$dir/ctl"
PH_CTL=("$posthousectl" --config-dir "$dir/ctl" --context quickstart)
local_ctl() { "$posthousectl" --config-dir "$dir/ctl" --socket "$dir/$1/$2.sock" "${@:3}"; }
for n in 1 2 3; do await 20 "the local socket of n$n" "n$n" test -S "$dir/n$n/node.sock"; done
await 20 "the local socket of the front" front test -S "$dir/front/front.sock"

if [ -e "$dir/n1/data/identity.json" ]; then
    say "3/5 the cluster was made before: resuming it"
else
    say "3/5 cluster init on n1"
    local_ctl n1 node cluster init --name quickstart --context quickstart --smtp-name localhost --smtp-name 127.0.0.1
fi
await 30 "a leader" n1 "${PH_CTL[@]}" connector list
for n in 2 3; do
    if [ ! -e "$dir/n$n/data/identity.json" ]; then
        token=$("${PH_CTL[@]}" cluster join-token create -o json | sed -n 's/.*"token": *"\([^"]*\)".*/\1/p')
        local_ctl "n$n" node node add --token "$token"
    fi
done
if [ ! -e "$dir/front/data/identity.json" ]; then
    token=$("${PH_CTL[@]}" cluster join-token create --role front -o json | sed -n 's/.*"token": *"\([^"]*\)".*/\1/p')
    local_ctl front front front add --token "$token"
fi
await 60 "a healthy cluster" n1 "${PH_CTL[@]}" cluster status

# ---- What the cluster is for --------------------------------------------------------------------------------------
say "4/5 an accepted domain, a connector for printers, a credential and a route"
has() { "${PH_CTL[@]}" "$1" show "$2" >/dev/null 2>&1; }
has route default || "${PH_CTL[@]}" route add '*' --to "$sink" --reason quickstart
has domain corp.example || "${PH_CTL[@]}" domain add corp.example --reason quickstart
has connector printers || "${PH_CTL[@]}" connector create printers --template anonymous-relay \
    --from 127.0.31.0/24 --comment "printers and scanners" --reason quickstart
user=scanner@corp.example
if ! has credential "$user"; then
    "${PH_CTL[@]}" credential create "$user" --own-domain --generate --reason quickstart -o json |
        sed -n 's/.*"password": *"\([^"]*\)".*/\1/p' > "$dir/password.new"
    [ -s "$dir/password.new" ] || die "no password was generated"
    chmod 600 "$dir/password.new"
    mv "$dir/password.new" "$dir/password"
fi
await 30 "the front" front curl -fsS "http://$front_http/readyz"
await 30 "the sink" sink listening "$sink"

# ---- A letter -----------------------------------------------------------------------------------------------------
say "5/5 a letter from printer 127.0.31.7 through the front to somebody outside"
message_id="quickstart-$(date +%s)-$$@corp.example"
printf 'From: <scan@corp.example>\r\nTo: <somebody@partner.example>\r\nSubject: A scan\r\nMessage-ID: <%s>\r\n\r\nScanned page one.\r\n' \
    "$message_id" > "$dir/letter.eml"
curl -sS --interface 127.0.31.7 --url "smtp://$front_smtp" --mail-from scan@corp.example \
    --mail-rcpt somebody@partner.example --upload-file "$dir/letter.eml" || die "the letter was refused"
arrived() { grep -rqsF "$message_id" "$dir/maildir/new" "$dir/maildir/cur"; }
await 30 "the letter's arrival in the sink" sink arrived
"${PH_CTL[@]}" message trace --message-id "$message_id"
"${PH_CTL[@]}" cluster status

if $once; then
    say "The letter arrived. Stopping."
    exit 0
fi

# ---- For scripts: written last, and whole -------------------------------------------------------------------------
{
    echo "PH_SMTP=$front_smtp"
    echo "PH_SUBMISSION=$front_submission"
    echo "PH_SUBMISSIONS=$front_submissions"
    printf 'PH_CTL="%s"\n' "${PH_CTL[*]}"
    echo "PH_CA=$dir/ca.pem"
    echo "PH_USER=$user"
    printf 'PH_PASSWORD=%q\n' "$(cat "$dir/password")"
    echo "PH_RELAY_SOURCE=127.0.31.0/24"
    echo "PH_DOMAIN=corp.example"
    echo "PH_SINK_MAILDIR=$dir/maildir"
    for n in 1 2 3; do echo "PH_NODE_n${n}_PID=${pid[n$n]}"; done
    echo "PH_FRONT_PID=${pid[front]}"
    for n in 1 2 3; do echo "PH_NODE_n${n}_HTTP=$(http $n)"; done
    echo "PH_FRONT_HTTP=$front_http"
    for n in 1 2 3; do echo "PH_NODE_n${n}_SMTP=$(smtp $n)"; done
    for n in 1 2 3; do printf 'PH_NODE_n%s_CMD="%s node --config %s"\n' $n "$posthouse" "$dir/n$n/node.toml"; done
} > "$dir/cluster.env.new"
cp "$dir/n1/data/ca.crt" "$dir/ca.pem"
chmod 600 "$dir/cluster.env.new"
mv "$dir/cluster.env.new" "$dir/cluster.env"

say "The cluster runs. In another terminal:  source $dir/cluster.env   and then try"
cat <<'END'
  $PH_CTL status
  $PH_CTL explain ip 127.0.31.7 --from scan@corp.example --to somebody@partner.example
  $PH_CTL explain ip 127.0.9.9 --from scan@corp.example --to somebody@partner.example
  $PH_CTL node drain n2 && $PH_CTL node resume n2
  $PH_CTL message trace --client-ip 127.0.31.7

Ctrl-C stops everything.
END
# A node that dies stops nothing else; only a signal ends this.
while :; do
    sleep 3600 &
    sleeper=$!
    wait $sleeper || true
done
