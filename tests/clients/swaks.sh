#!/bin/sh
# One letter with swaks. What each variable is: ../tests/clients.rs.
set -- --server 127.0.0.1 --port "$PORT" --local-interface "$SOURCE" --helo printer.example --timeout 30s \
    --from "$MAIL_FROM" --to "$RCPT" --data "$LETTER"
case $MODE in
starttls) set -- "$@" --tls --tls-verify --tls-ca-path "$CA" ;;
implicit) set -- "$@" --tls-on-connect --tls-verify --tls-ca-path "$CA" ;;
esac
[ -z "$LOGIN_USER" ] || set -- "$@" --auth "${MECHANISM:-PLAIN,LOGIN}" --auth-user "$LOGIN_USER" \
    --auth-password "$(cat "$LOGIN_PASSWORD_FILE")"
exec swaks "$@"
