"""One letter with Python's smtplib. What each variable is: ../tests/clients.rs."""

import os
import smtplib
import ssl
import sys

e = os.environ
context = ssl.create_default_context(cafile=e["CA"])
options = {"local_hostname": "printer.example", "timeout": 30, "source_address": (e["SOURCE"], 0)}
try:
    if e["MODE"] == "implicit":
        client = smtplib.SMTP_SSL("localhost", int(e["PORT"]), context=context, **options)
    else:
        client = smtplib.SMTP("localhost", int(e["PORT"]), **options)
    client.set_debuglevel(1)
    if e["MODE"] == "starttls":
        client.starttls(context=context)
    if e["LOGIN_USER"]:
        with open(e["LOGIN_PASSWORD_FILE"]) as secret:
            client.login(e["LOGIN_USER"], secret.read().strip())
    with open(e["LETTER"]) as letter:
        client.sendmail(e["MAIL_FROM"], e["RCPT"], letter.read())
    client.quit()
except smtplib.SMTPException as error:
    sys.exit(f"refused: {error!r}")
