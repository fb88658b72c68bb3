"""Git servers on ports of 127.0.0.1: git's own daemon, a real sshd, and http(s) with git-http-backend."""

from __future__ import annotations

import base64
import contextlib
import http.server
import ssl
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import realsshd
from servers import free_port, listening

from kimbox.run import run, which

#: The only account that the http server accepts.
USER, PASSWORD = "me", "hunter2"


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """Serves git://. Yields the URL of the folder."""
    port = free_port()
    pid_file = folder.with_name("daemon.pid")
    options = [f"--base-path={folder}", "--listen=127.0.0.1", f"--port={port}", f"--pid-file={pid_file}"]
    argv = ["git", "daemon", "--export-all", *options, str(folder)]
    with listening(argv, port, pid_file, folder.with_name("daemon.log")):
        yield f"git://127.0.0.1:{port}"


@contextlib.contextmanager
def sshd(work: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Serves ssh://. Yields the URL of the folder, and the ssh command with the key and the known hosts in `work`."""
    work.mkdir()
    with realsshd.serving(work) as endpoint:
        options = f"-F none -i {endpoint.key_path} -o UserKnownHostsFile={endpoint.known_hosts_path}"
        pinned = f"-o GlobalKnownHostsFile=none -o HostKeyAlias={endpoint.alias} -o BatchMode=yes"
        yield f"ssh://{endpoint.host}:{endpoint.port}{folder}", f"ssh {options} {pinned}"


@contextlib.contextmanager
def http_backend(
    folder: Path, *, certificate: tuple[Path, Path] | None = None, password: bool = False
) -> Iterator[str]:
    """Serves http:// or, with a certificate and its key, https://. Yields the URL. `password`: only for USER."""
    backend = Path(run(["git", "--exec-path"]).stdout.strip()) / "git-http-backend"
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            if password and self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            env = {
                "GIT_PROJECT_ROOT": str(folder), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_ADDR": "127.0.0.1",
                "CONTENT_TYPE": self.headers.get("Content-Type", ""), "GIT_CONFIG_COUNT": "1",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            }  # fmt: skip
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with tempfile.TemporaryDirectory() as temporary:
                request, response = Path(temporary) / "request", Path(temporary) / "response"
                request.write_bytes(body)
                run(["sh", "-c", '"$1" <"$2" >"$3"', "sh", backend, request, response], env=env, check=False)
                head, _, content = response.read_bytes().partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(work: Path) -> tuple[Path, Path]:
    """Makes a self-signed certificate for 127.0.0.1 that no program trusts yet. Returns it and its key."""
    if not which("openssl"):
        pytest.skip("needs the program openssl")
    cert, key = work / "cert.pem", work / "key.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    )  # fmt: skip
    return cert, key
