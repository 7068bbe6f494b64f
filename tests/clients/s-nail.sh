#!/bin/sh
# One letter with s-nail. It composes its own header, so that it takes the body alone; and it cannot choose a source
# address, so that PORT is a forwarder's. What each variable is: ../tests/clients.rs.
subject=$(sed -n 's/^Subject: //p' "$LETTER")
login=
auth=none
if [ -n "$LOGIN_USER" ]; then
    # In a URL, `@` of the user name is %40. Generated passwords need no escape.
    login="$(printf %s "$LOGIN_USER" | sed 's/@/%40/g'):$(cat "$LOGIN_PASSWORD_FILE")@"
    auth=login
fi
scheme=smtp
set -- -S smtp-auth=$auth
case $MODE in
starttls) set -- "$@" -S smtp-use-starttls -S tls-verify=strict -S tls-ca-no-defaults -S tls-ca-file="$CA" ;;
implicit)
    scheme=smtps
    set -- "$@" -S tls-verify=strict -S tls-ca-no-defaults -S tls-ca-file="$CA"
    ;;
esac
sed '1,/^$/d' "$LETTER" | MAILRC=/dev/null exec s-nail -n -v -s "$subject" -r "$MAIL_FROM" -S sendwait -S v15-compat \
    -S DEAD=/dev/null -S nosave -S hostname=printer.example -S ttycharset=us-ascii \
    -S mta="$scheme://${login}localhost:$PORT" "$@" "$RCPT"
