"""Sends one letter with Python's smtplib and prints what the server said as JSON. Nothing of Posthouse is in here."""

import argparse
import json
import smtplib
import ssl

parser = argparse.ArgumentParser()
parser.add_argument("--to-host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--source", default="127.0.0.1")
parser.add_argument("--mode", choices=["plain", "starttls", "implicit"], default="plain")
parser.add_argument("--ca")
parser.add_argument("--user")
parser.add_argument("--password-file")
parser.add_argument("--mail-from", default="scan@corp.example")
parser.add_argument("--rcpt", default="somebody@partner.example")
parser.add_argument("--id", required=True)
args = parser.parse_args()

context = ssl.create_default_context(cafile=args.ca) if args.ca else None
source = (args.source, 0)
result = {}
try:
    if args.mode == "implicit":
        client = smtplib.SMTP_SSL(
            args.to_host, args.port, local_hostname="printer.example", timeout=30, source_address=source, context=context
        )
    else:
        client = smtplib.SMTP(
            args.to_host, args.port, local_hostname="printer.example", timeout=30, source_address=source
        )
        if args.mode == "starttls":
            client.starttls(context=context)
    if args.user:
        with open(args.password_file) as secret:
            client.login(args.user, secret.read().strip())
    client.ehlo_or_helo_if_needed()
    steps = [client.mail(args.mail_from), client.rcpt(args.rcpt)]
    text = (
        f"From: <{args.mail_from}>\r\nTo: <{args.rcpt}>\r\nMessage-ID: <{args.id}@client.example>\r\n"
        f"Subject: {args.id}\r\n\r\n.a line that begins with a dot\r\nlast line\r\n"
    )
    if all(code < 300 for code, _ in steps):
        steps.append(client.data(text))
    code, reply = steps[-1]
    for code, reply in steps:
        if code >= 300:
            break
    result = {"code": code, "reply": reply.decode()}
    client.quit()
except smtplib.SMTPResponseException as error:
    text = error.smtp_error
    result = {"code": error.smtp_code, "reply": text.decode() if isinstance(text, bytes) else str(text)}
except (OSError, smtplib.SMTPException) as error:
    result = {"code": 0, "reply": f"{type(error).__name__}: {error}"}
print(json.dumps(result))
