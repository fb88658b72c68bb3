"""Git servers for tests, on ports of 127.0.0.1: git's own daemon, a real sshd, and http(s) with git-http-backend."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import pwd
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimbox.run import detach, run, which

#: The one account that the http server lets in.
USER, PASSWORD = "me", "hunter2"

#: How long a server may take to listen.
START_LIMIT_S = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _listening(argv: list[str], port: int, pid_file: Path) -> Iterator[None]:
    """A server's process, from the moment that it listens."""
    ended = detach(argv, log=pid_file.with_suffix(".log"))
    try:
        end = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert ended() is None, pid_file.with_suffix(".log").read_text()
            assert time.monotonic() < end, f"{argv[0]} does not listen"
            time.sleep(0.02)
        yield
    finally:
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
        while ended() is None:
            time.sleep(0.02)


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """git://; yields the URL that stands for the folder."""
    port = free_port()
    pid_file = folder.with_name("daemon.pid")
    where = [f"--base-path={folder}", "--listen=127.0.0.1", f"--port={port}", f"--pid-file={pid_file}"]
    with _listening(["git", "daemon", "--export-all", *where, str(folder)], port, pid_file):
        yield f"git://127.0.0.1:{port}"


@contextlib.contextmanager
def sshd(work: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """ssh://; yields the URL that stands for the folder, and the ssh command that reaches it."""
    program = which("sshd")
    if not program:
        pytest.skip("there is no sshd")
    if pwd.getpwuid(os.getuid()).pw_shell.endswith(("/nologin", "/false")):
        pytest.skip("nobody can log in to this account")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges
    port = free_port()
    for key in ("host", "user"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / key])
    (work / "authorized").write_text((work / "user.pub").read_text())
    (work / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {work}/host\nAuthorizedKeysFile {work}/authorized\nStrictModes no\n"
        f"PidFile {work}/pid\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv HOME={work}\n"  # nothing of the user's own shell and git comes into it
    )
    with _listening([program, "-D", "-f", str(work / "sshd_config")], port, work / "pid"):
        (work / "known").write_text(f"[127.0.0.1]:{port} {(work / 'host.pub').read_text()}")
        options = f"-F none -i {work}/user -o UserKnownHostsFile={work}/known -o GlobalKnownHostsFile=none"
        yield f"ssh://127.0.0.1:{port}{folder}", f"ssh {options} -o BatchMode=yes"


@contextlib.contextmanager
def http_backend(
    folder: Path, *, certificate: tuple[Path, Path] | None = None, password: bool = False
) -> Iterator[str]:
    """http:// or, with certificate and key, https://; yields the URL that stands for the folder."""
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
            with tempfile.TemporaryDirectory() as place:
                asked, answered = Path(place) / "asked", Path(place) / "answered"
                asked.write_bytes(body)
                run(["sh", "-c", '"$1" <"$2" >"$3"', "sh", backend, asked, answered], env=env, check=False)
                head, _, content = answered.read_bytes().partition(b"\r\n\r\n")
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
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key."""
    if not which("openssl"):
        pytest.skip("there is no openssl")
    cert, key = work / "cert.pem", work / "key.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    )  # fmt: skip
    return cert, key
