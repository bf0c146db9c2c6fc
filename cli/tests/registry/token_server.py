"""A server of docker's registry tokens: token_server.py CERTIFICATE KEY USER:PASSWORD

It prints its port on 127.0.0.1, and gives every scope that is asked for to that user."""

import base64
import http.server
import json
import re
import ssl
import subprocess
import sys
import time
import urllib.parse

CERTIFICATE, KEY, USER = sys.argv[1:]


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(scopes):
    with open(CERTIFICATE, encoding="ascii") as file:
        x5c = re.search("-+BEGIN CERTIFICATE-+(.*?)-+END", file.read(), re.DOTALL)[1]
    access = []
    for scope in scopes:
        kind, rest = scope.split(":", 1)
        name, actions = rest.rsplit(":", 1)
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    now = int(time.time())
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(x5c.split())]}
    claims = {"iss": "test", "sub": "me", "aud": "test", "exp": now + 300, "nbf": now - 60, "iat": now,
              "jti": str(time.time_ns()), "access": access}
    signed = b".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    sign = ["openssl", "dgst", "-sha256", "-sign", KEY]
    signature = subprocess.run(sign, input=signed, stdout=subprocess.PIPE, check=True).stdout
    return (signed + b"." + encoded(signature)).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        expected = "Basic " + base64.b64encode(USER.encode()).decode()
        if self.headers.get("authorization") != expected:
            return self.answer(401, {"details": "incorrect username or password"})
        scopes = [scope for value in query.get("scope", []) for scope in value.split(" ")]
        return self.answer(200, {"token": token(scopes)})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
