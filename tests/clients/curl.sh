#!/bin/sh
# One letter with curl. What each variable is: ../tests/clients.rs.
scheme=smtp
[ "$MODE" != implicit ] || scheme=smtps
set -- --silent --show-error --verbose --ipv4 --max-time 60 --interface "$SOURCE" --crlf --upload-file "$LETTER" \
    --mail-from "$MAIL_FROM" --mail-rcpt "$RCPT"
[ "$MODE" = plain ] || set -- "$@" --cacert "$CA" --ssl-reqd
[ -z "$LOGIN_USER" ] || set -- "$@" --user "$LOGIN_USER:$(cat "$LOGIN_PASSWORD_FILE")"
exec curl "$@" "$scheme://localhost:$PORT/printer.example"
