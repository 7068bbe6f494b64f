"""A next hop made of aiosmtpd: keeps each letter as a file, with its envelope and login above it."""

import argparse
import asyncio
import itertools
import pathlib
import ssl

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, SMTP

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--dir", type=pathlib.Path, required=True)
parser.add_argument("--cert")
parser.add_argument("--key")
parser.add_argument("--user")
parser.add_argument("--password")
parser.add_argument("--size", type=int, default=33554432)
args = parser.parse_args()
numbers = itertools.count()


class Keeper:
    async def handle_DATA(self, server, session, envelope):
        head = "X-From: %s\nX-To: %s\nX-Login: %s\nX-Tls: %s\n" % (
            envelope.mail_from,
            ", ".join(envelope.rcpt_tos),
            session.auth_data.decode() if session.auth_data else "",
            session.ssl is not None,
        )
        name = args.dir / ("%06d" % next(numbers))
        partial = name.with_suffix(".partial")
        partial.write_bytes(head.encode() + envelope.original_content)
        partial.rename(name)
        return "250 2.0.0 kept"


def authenticate(server, session, envelope, mechanism, data):
    right = data.login == args.user.encode() and data.password == args.password.encode()
    return AuthResult(success=right, handled=False, auth_data=data.login)


class Hop(Controller):
    def factory(self):
        more = {}
        if args.cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(args.cert, args.key)
            more.update(tls_context=context, require_starttls=True)
        if args.user:
            more.update(auth_required=True, authenticator=authenticate)
        return SMTP(self.handler, data_size_limit=args.size, enable_SMTPUTF8=True, **more)


controller = Hop(Keeper(), hostname="127.0.0.1", port=args.port)
controller.start()
asyncio.new_event_loop().run_forever()
