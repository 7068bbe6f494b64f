#!/usr/bin/env python3
"""SCRAM-SHA-256-PLUS with tls-exporter (RFC 9266) over TLS that OpenSSL speaks: s_client prints the keying material.

Usage: scram_plus.py HOST:PORT USER PASSWORD [spoil]. With "spoil" the octets of another connection are bound.
Prints the server's last reply.
"""
import base64, hashlib, hmac, os, re, subprocess, sys


def main():
    target, user, password, *more = sys.argv[1:]
    command = ["openssl", "s_client", "-connect", target, "-tls1_3", "-ign_eof", "-crlf"]
    command += ["-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    material = None
    while True:
        line = client.stdout.readline()
        if not line:
            sys.exit("s_client ended")
        found = re.search(rb"Keying material: ([0-9A-F]{64})", line)
        if found:
            material = bytes.fromhex(found.group(1).decode())
        if line.startswith(b"220 "):
            break
    if material is None:
        sys.exit("s_client printed no keying material")
    if more == ["spoil"]:
        material = os.urandom(32)

    def say(line):
        client.stdin.write(line + b"\n")
        client.stdin.flush()
        while True:
            heard = client.stdout.readline()
            if not heard:
                sys.exit("closed")
            # s_client tells of session tickets between the lines.
            if re.match(rb"[2-5]\d\d ", heard):
                return heard.rstrip(b"\r\n")

    say(b"EHLO d.example")
    header = b"p=tls-exporter,,"
    bare = b"n=" + user.encode() + b",r=" + base64.b64encode(os.urandom(18))
    first = say(b"AUTH SCRAM-SHA-256-PLUS " + base64.b64encode(header + bare))
    if not first.startswith(b"334 "):
        return print(first.decode())
    server = base64.b64decode(first[4:])
    fields = dict(field.split(b"=", 1) for field in server.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=" + base64.b64encode(header + material) + b",r=" + fields[b"r"]
    message = bare + b"," + server + b"," + without
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    last = say(base64.b64encode(without + b",p=" + base64.b64encode(proof)))
    if last.startswith(b"334 "):
        last = say(b"")
    print(last.decode())
    client.kill()


main()
