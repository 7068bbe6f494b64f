#!/bin/sh
# One letter with swaks. What each variable is: ../tests/clients.rs.
# swaks ends the letter with a line end of its own: the file's last one would make an empty line.
printf %s "$(cat "$LETTER")" >"$LETTER.swaks"
set -- --server 127.0.0.1 --port "$PORT" --local-interface "$SOURCE" --helo printer.example --timeout 30s \
    --from "$MAIL_FROM" --to "$RCPT" --data "$LETTER.swaks"
case $MODE in
starttls) set -- "$@" --tls --tls-verify --tls-ca-path "$CA" ;;
implicit) set -- "$@" --tls-on-connect --tls-verify --tls-ca-path "$CA" ;;
esac
[ -z "$LOGIN_USER" ] || set -- "$@" --auth "${MECHANISM:-PLAIN,LOGIN}" --auth-user "$LOGIN_USER" \
    --auth-password "$(cat "$LOGIN_PASSWORD_FILE")"
exec swaks "$@"
