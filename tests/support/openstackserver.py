"""Runs in the environment with Keystone and Glance (`script/test cloud`): `init FOLDER URL`, or `SERVICE PORT`."""

import os
import sys


def init(folder: str, url: str) -> None:
    """Makes the database of Keystone, its keys, and the administrator."""
    from keystone.cmd import manage

    conf = ["keystone-manage", "--config-file", f"{folder}/keystone.conf"]
    user = str(os.getuid())
    for words in (
        ["db_sync"],
        ["fernet_setup", "--keystone-user", user, "--keystone-group", str(os.getgid())],
        ["bootstrap", "--bootstrap-password", "secret", "--bootstrap-region-id", "one",
         "--bootstrap-public-url", url, "--bootstrap-internal-url", url],
    ):  # fmt: skip
        if os.fork() == 0:  # each command configures the process
            sys.argv = [*conf, *words]
            manage.main()
            os._exit(0)
        if os.wait()[1] != 0:
            raise SystemExit(f"keystone-manage {words[0]} failed")


def serve(service: str, port: str) -> None:
    """Serves Keystone or Glance, whose configuration is in the environment."""
    import waitress

    sys.argv = [service]
    if service == "keystone":
        from keystone.server import wsgi

        app = wsgi.initialize_public_application()
    else:
        from glance.common import wsgi_app

        app = wsgi_app.init_app()
    waitress.serve(app, listen=f"127.0.0.1:{port}", threads=4, ident=None)


if __name__ == "__main__":
    (init if sys.argv[1] == "init" else serve)(*sys.argv[2:] if sys.argv[1] == "init" else sys.argv[1:])
