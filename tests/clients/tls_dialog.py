#!/usr/bin/env python3
"""Speaks SMTP over TLS line by line, as a device would, and says what it heard.

Reads one JSON object from standard input:
  host, port, source, mode (implicit | starttls), ca (file; absent: nothing is verified), name (for SNI and checks),
  cert and key (of its own), prefix (hex octets that go out together with the ClientHello), fragment (octets of each
  TLS record of the ClientHello), split (octets of each write of it), steps: lines to send. Steps that begin with "@":
    @wait FILE       says "waiting" on standard error and goes on when FILE exists
    @scram USER PASSWORD [y]   a whole SCRAM-SHA-256 exchange; with y as if the offer of -PLUS had been taken out
    @raw HEX         sends octets inside TLS and reads no reply
    @close           sends close_notify, then one octet in the clear, and reads what comes
Answers {"replies": [...], "version": ..., "sha256": leaf certificate, "error": ...}.
"""
import base64, hashlib, hmac, json, os, socket, ssl, sys, time


def main():
    ask = json.load(sys.stdin)
    told = {"replies": [], "version": None, "sha256": None, "error": None}
    try:
        run(ask, told)
    except (OSError, ssl.SSLError, EOFError) as error:
        told["error"] = str(error)
    json.dump(told, sys.stdout)


def run(ask, told):
    source = (ask["source"], 0) if ask.get("source") else None
    tcp = socket.create_connection((ask["host"], ask["port"]), timeout=30, source_address=source)
    context = ssl.create_default_context(cafile=ask.get("ca"))
    if not ask.get("ca"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if ask.get("cert"):
        context.load_cert_chain(ask["cert"], ask["key"])
    if ask["mode"] == "starttls":
        reader = tcp.makefile("rb")
        told["replies"].append(reply(reader))
        for line in ("EHLO before.example", "STARTTLS"):
            tcp.sendall(line.encode() + b"\r\n")
            told["replies"].append(reply(reader))
    tls = Tls(context, tcp, ask)
    told["version"] = tls.object.version()
    told["sha256"] = hashlib.sha256(tls.object.getpeercert(binary_form=True)).hexdigest()
    reader = tls
    if ask["mode"] == "implicit":
        told["replies"].append(reply(reader))
    for step in ask["steps"]:
        words = step.split(" ")
        if words[0] == "@wait":
            print("waiting", file=sys.stderr, flush=True)
            deadline = time.monotonic() + 60
            while not os.path.exists(words[1]):
                if time.monotonic() > deadline:
                    raise EOFError("nobody made " + words[1])
                time.sleep(0.02)
        elif words[0] == "@scram":
            told["replies"].append(scram(tls, reader, words[1], words[2], words[3:]))
        elif words[0] == "@raw":
            tls.sendall(bytes.fromhex(words[1]))
        elif words[0] == "@close":
            heard = tls.close_and_say(b".\r\nRSET\r\nNOOP\r\n")
            told["replies"].append("after close_notify: %d octets" % len(heard))
            return
        else:
            tls.sendall(step.encode() + b"\r\n")
            told["replies"].append(reply(reader))


class Tls:
    """TLS whose octets pass through our hands, so that close_notify and what follows it go out together."""

    def __init__(self, context, tcp, ask):
        self.tcp, self.incoming, self.outgoing, self.ask = tcp, ssl.MemoryBIO(), ssl.MemoryBIO(), ask
        name = ask.get("name") or "localhost"
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.first = True
        self.heard = b""
        self.until_done(self.object.do_handshake)

    def until_done(self, action):
        while True:
            try:
                result = action()
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                octets = self.tcp.recv(65536)
                if not octets:
                    raise EOFError("closed")
                self.incoming.write(octets)

    def flush(self):
        if not self.outgoing.pending:
            return
        octets = self.outgoing.read()
        if self.first:
            self.first = False
            octets = self.first_flight(octets)
        self.tcp.sendall(octets)

    def first_flight(self, octets):
        """The ClientHello, cut as asked; what is left to send is the last piece."""
        size = self.ask.get("fragment")
        if size:
            head, body = octets[:3], octets[5:]
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            octets = b"".join(head + len(piece).to_bytes(2, "big") + piece for piece in pieces)
        octets = bytes.fromhex(self.ask.get("prefix") or "") + octets
        size = self.ask.get("split")
        if size:
            self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while len(octets) > size:
                self.tcp.sendall(octets[:size])
                time.sleep(0.002)
                octets = octets[size:]
        return octets

    def sendall(self, octets):
        self.object.write(octets)
        self.flush()

    def readline(self):
        while b"\n" not in self.heard:
            octets = self.until_done(lambda: self.object.read(65536))
            if not octets:
                return b""
            self.heard += octets
        line, self.heard = self.heard.split(b"\n", 1)
        return line + b"\n"

    def close_and_say(self, clear):
        try:
            self.object.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.tcp.sendall(self.outgoing.read() + clear)
        self.tcp.settimeout(15)
        heard = b""
        try:
            while octets := self.tcp.recv(4096):
                heard += octets
        except OSError:
            pass
        self.incoming.write(heard)
        said = b""
        try:
            while octets := self.object.read(65536):
                said += octets
        except ssl.SSLError:
            pass
        return said


def reply(reader):
    whole = ""
    while True:
        line = reader.readline()
        if not line:
            raise EOFError("closed; heard " + whole)
        whole += line.decode("latin-1")
        if line[3:4] != b"-":
            return whole.rstrip("\r\n")


def scram(tls, reader, user, password, more):
    def say(line):
        tls.sendall(line + b"\r\n")
        return reply(reader)

    header = b"y,," if more == ["y"] else b"n,,"
    bare = b"n=" + user.encode() + b",r=" + base64.b64encode(os.urandom(18))
    first = say(b"AUTH SCRAM-SHA-256 " + base64.b64encode(header + bare))
    if not first.startswith("334 "):
        return first
    server = base64.b64decode(first[4:])
    fields = dict(field.split(b"=", 1) for field in server.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=" + base64.b64encode(header) + b",r=" + fields[b"r"]
    message = bare + b"," + server + b"," + without
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    last = say(base64.b64encode(without + b",p=" + base64.b64encode(proof)))
    if not last.startswith("334 "):
        return last
    expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
    if base64.b64decode(last[4:]) != b"v=" + base64.b64encode(expected):
        return "the server did not prove that it knows the password"
    return say(b"")


main()
