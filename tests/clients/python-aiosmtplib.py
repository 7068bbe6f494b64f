"""One letter with aiosmtplib. What each variable is: ../tests/clients.rs."""

import asyncio
import os
import ssl
import sys

import aiosmtplib

e = os.environ


async def send() -> None:
    client = aiosmtplib.SMTP(
        hostname="localhost",
        port=int(e["PORT"]),
        local_hostname="printer.example",
        source_address=(e["SOURCE"], 0),
        timeout=30,
        use_tls=e["MODE"] == "implicit",
        start_tls=e["MODE"] == "starttls",
        tls_context=ssl.create_default_context(cafile=e["CA"]),
    )
    async with client:
        if e["LOGIN_USER"]:
            with open(e["LOGIN_PASSWORD_FILE"]) as secret:
                await client.login(e["LOGIN_USER"], secret.read().strip())
        with open(e["LETTER"]) as letter:
            _, reply = await client.sendmail(e["MAIL_FROM"], [e["RCPT"]], letter.read())
        print(reply)


try:
    asyncio.run(send())
except aiosmtplib.SMTPResponseException as error:
    sys.exit(f"refused: {error.code} {error.message}")
except aiosmtplib.SMTPRecipientsRefused as error:
    sys.exit("refused: " + "; ".join(f"{each.code} {each.message}" for each in error.recipients))
