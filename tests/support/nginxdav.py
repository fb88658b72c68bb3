"""nginx with WebDAV on 127.0.0.1, for the files of a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, listening

from kimbox.run import which

CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
{user}
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/nginx;
        location /dav/ {{
            dav_methods PUT DELETE MKCOL MOVE;
            create_full_put_path on;
        }}
    }}
}}
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Runs nginx. Yields the URL of an empty store. Skips the test without nginx."""
    program = which("nginx") or (Path("/usr/sbin/nginx") if Path("/usr/sbin/nginx").exists() else None)
    if program is None:
        pytest.skip("needs the package nginx-light")
    port = free_port()
    (folder / "nginx/dav").mkdir(parents=True)
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port, user=user))
    argv = [str(program), "-e", str(folder / "nginx.log"), "-c", str(folder / "nginx.conf")]
    with listening(argv, port, folder / "nginx.pid", folder / "nginx.out"):
        yield f"http://127.0.0.1:{port}/dav/boxes/tiny"
