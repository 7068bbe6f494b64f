#!/bin/sh
# One letter with msmtp. What each variable is: ../tests/clients.rs.
set -- --file=/dev/null --debug --host=127.0.0.1 --port="$PORT" --source-ip="$SOURCE" --domain=printer.example \
    --timeout=30 --from="$MAIL_FROM"
case $MODE in
plain) set -- "$@" --tls=off ;;
starttls) set -- "$@" --tls=on --tls-starttls=on --tls-trust-file="$CA" --tls-host-override=localhost ;;
implicit) set -- "$@" --tls=on --tls-starttls=off --tls-trust-file="$CA" --tls-host-override=localhost ;;
esac
[ -z "$LOGIN_USER" ] || set -- "$@" --auth="${MECHANISM:-on}" --user="$LOGIN_USER" \
    --passwordeval="cat $LOGIN_PASSWORD_FILE"
exec msmtp "$@" -- "$RCPT" <"$LETTER"
