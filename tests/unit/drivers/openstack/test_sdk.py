"""The requests to Nova, Neutron and Glance, and what becomes of their answers. The connection is one of the test."""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refused import refused

import kimbox
from kimbox import run
from kimbox.drivers.openstack import sdk
from kimbox.drivers.openstack.cloud import Action, Address, Limit, Server, ServerOrder
from kimbox.drivers.openstack.sdk import Sdk
from kimbox.errors import KimboxError


class Connection:
    """Answers each request with the next of `answers`: a status and a body. Records the requests."""

    current_project_id = "p1"

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, str, dict[str, Any]]] = []
        self.session = SimpleNamespace(invalidate=lambda: None)

    def __getattr__(self, service: str) -> SimpleNamespace:
        def request(path: str, method: str, **options: Any) -> SimpleNamespace:
            assert options.pop("raise_exc") is False
            self.requests.append((service, method, path, options))
            status, body = self.answers.pop(0)
            text = body if isinstance(body, str) else json.dumps(body)
            return SimpleNamespace(status_code=status, text=text, json=lambda: json.loads(text))

        return SimpleNamespace(request=request)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (403, {"forbidden": {"message": "Quota exceeded for cores: Requested 2, used 19 of 20"}}, "cloud-quota"),
        (403, {"forbidden": {"message": "Maximum number of metadata items exceeds 0"}}, "cloud-quota"),
        (409, {"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for ['floatingip']."}}, "cloud-quota"),
        (413, "<html>Request Entity Too Large</html>", "cloud-quota"),
        (403, {"forbidden": {"code": 403, "message": "Policy doesn't allow it"}}, "cloud-failed"),
        (404, {"itemNotFound": {"message": "gone"}}, "cloud-not-found"),
        (401, "", "cloud-login"),
        (500, "\x1b[2J" + "x" * 9000, "cloud-failed"),
    ],
)  # fmt: skip
def test_a_request_that_is_refused(status: int, body: Any, code: str) -> None:
    """The code says what it is; the message is that of the service, short and without control characters."""
    with refused(KimboxError, code, status=str(status)) as caught:
        Sdk(Connection((status, body))).import_key("k", "ssh-ed25519 AAAA")
    if isinstance(body, dict):
        assert next(iter(body.values()))["message"] in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 700


def test_no_file_of_the_current_folder_is_read(tmp_path: Path) -> None:
    """It may come with a spec: the user's password would go to the server that it names."""
    home, folder = tmp_path / ".config/openstack", tmp_path / "cloned"
    home.mkdir(parents=True)
    folder.mkdir()
    login = {"username": "kim", "password": "secret", "project_name": "p", "user_domain_id": "d"}
    for place, host in ((home, "127.0.0.1"), (folder, "127.0.0.2")):
        cloud = {"auth": login | {"auth_url": f"http://{host}:1/v3"}}
        (place / "clouds.yaml").write_text(json.dumps({"clouds": {"mine": cloud}}))
    script = "from kimbox.drivers.openstack import sdk; sdk.connect('mine')"
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(kimbox.__file__).parents[1])}
    done = run.run([sys.executable, "-c", script], check=False, cwd=folder, env=env)
    assert "KimboxError: no login to the cloud mine" in done.stderr
    assert "127.0.0.1:1/v3" in done.stderr
    assert "127.0.0.2" not in done.stderr


class Endless(http.server.BaseHTTPRequestHandler):
    """Answers without end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 20))

    def log_message(self, *_: object) -> None:
        pass


def test_an_answer_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not kept in memory, also at the login."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever).start()
        login = {"auth_url": f"http://127.0.0.1:{server.server_port}", "username": "kim", "password": "secret"}
        file = tmp_path / "clouds.yaml"
        file.write_text(json.dumps({"clouds": {"endless": {"auth": login | {"project_name": "p"}}}}))
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
        try:
            with refused(KimboxError, "cloud-login") as caught:
                sdk.connect("endless")
        finally:
            server.shutdown()
    assert "an answer has more than 16.0 MiB" in caught.value.message


@pytest.mark.parametrize("status", [400, 415])
def test_a_disk_that_is_refused(status: int, tmp_path: Path) -> None:
    """Glance checks what it receives."""
    (tmp_path / "disk").write_bytes(b"x")
    with refused(KimboxError, "image-refused"):
        Sdk(Connection((status, "<h1>Unsupported</h1>"))).upload("i1", tmp_path / "disk")


def test_an_external_network_without_addresses() -> None:
    """Neutron answers 409, as for other conflicts."""
    answer = {"NeutronError": {"type": "IpAddressGenerationFailure", "message": "No more IP addresses available"}}
    with refused(KimboxError, "no-address"):
        Sdk(Connection((409, answer))).allocate("n2", "kimbox-tiny-0")


def test_what_is_gone_is_deleted() -> None:
    """A second removal is no error."""
    cloud = Sdk(Connection(*[(404, "")] * 4))
    cloud.delete_server("s1")
    cloud.delete_key("k")
    cloud.release("a1")
    cloud.delete_image("i1")


def test_an_instance() -> None:
    """It has a config drive, one network, key, metadata and user data; no other field."""
    connection = Connection((202, {}))
    Sdk(connection).create_server(ServerOrder("kimbox-x-0", "i1", "f1", "n1", "k1", {"a": "b"}, b"#x"))
    ((service, method, path, options),) = connection.requests
    assert ("compute", "POST", "/servers") == (service, method, path)
    assert {
        "name": "kimbox-x-0", "imageRef": "i1", "flavorRef": "f1", "networks": [{"uuid": "n1"}], "key_name": "k1",
        "metadata": {"a": "b"}, "config_drive": True, "user_data": "I3g=",
    } == options["json"]["server"]  # fmt: skip


def test_the_instances_of_a_name() -> None:
    """Exactly of this name, with their fixed IPv4 addresses and the reason of a failure."""
    addresses = {
        "private": [
            {"addr": "fd00::1", "version": 6, "OS-EXT-IPS:type": "fixed"},
            {"addr": "10.0.0.7", "version": 4, "OS-EXT-IPS:type": "fixed"},
            {"addr": "192.0.2.1", "version": 4, "OS-EXT-IPS:type": "floating"},
        ]
    }
    mine = {
        "id": "s1",
        "name": "kimbox-a.b",
        "status": "ERROR",
        "addresses": addresses,
        "fault": {"message": "no host"},
    }
    other = {"id": "s2", "name": "kimbox-axb", "status": "ACTIVE"}
    cloud = Sdk(Connection((200, {"servers": [other, mine]})))
    assert [Server("s1", "ERROR", "no host", ("10.0.0.7",))] == cloud.servers("kimbox-a.b")


def test_the_reason_of_a_failure() -> None:
    """Nova tells it for the single instance alone if no node has taken it. The instance may have gone since."""
    listed = {"id": "s1", "name": "kimbox-a", "status": "ERROR"}
    shown = listed | {"fault": {"message": "No valid host was found."}}
    cloud = Sdk(Connection((200, {"servers": [listed]}), (200, {"server": shown})))
    assert [Server("s1", "ERROR", "No valid host was found.")] == cloud.servers("kimbox-a")
    cloud = Sdk(Connection((200, {"servers": [listed]}), (404, {"itemNotFound": {"message": "gone"}})))
    assert [Server("s1", "ERROR")] == cloud.servers("kimbox-a")


def test_the_quotas() -> None:
    """Those of Nova, the number of keys, and those of Neutron if it tells them."""
    absolute = {
        "totalInstancesUsed": 1, "maxTotalInstances": 10, "totalCoresUsed": 2, "maxTotalCores": 20,
        "totalRAMUsed": 512, "maxTotalRAMSize": -1, "maxTotalKeypairs": 100,
    }  # fmt: skip
    nova = [(200, {"limits": {"absolute": absolute}}), (200, {"keypairs": [{"keypair": {"name": "k"}}]})]
    neutron = {"quota": {"floatingip": {"used": 2, "limit": 2, "reserved": 0}}}
    expected = {"instances": Limit(1, 10), "cores": Limit(2, 20), "ram_mib": Limit(512, -1), "keys": Limit(1, 100)}
    assert expected | {"addresses": Limit(2, 2)} == Sdk(Connection(*nova, (200, neutron))).limits()
    assert expected == Sdk(Connection(*nova, (404, ""))).limits()


def test_an_address_leads_to_the_port_of_an_instance() -> None:
    """Free is an address without a port."""
    item = {"id": "a1", "floating_ip_address": "192.0.2.1", "port_id": None, "description": None}
    connection = Connection((200, {"floatingips": [item]}), (200, {"ports": [{"id": "p7"}]}), (200, {}))
    cloud = Sdk(connection)
    assert [Address("a1", "192.0.2.1", True, "")] == cloud.addresses("n2")
    cloud.attach("a1", "s1")
    assert {"floatingip": {"port_id": "p7"}} == connection.requests[-1][3]["json"]


def test_only_what_the_project_has_is_listed() -> None:
    """An administrator sees free addresses and images of other projects, which are not to be taken or removed."""
    connection = Connection((200, {"floatingips": []}), (200, {"images": []}))
    cloud = Sdk(connection)
    cloud.addresses("n2")
    cloud.images(tag="kimbox-image-0")
    addresses, images = (options["params"] for *_, options in connection.requests)
    assert ("n2", "p1") == (addresses["floating_network_id"], addresses["project_id"])
    assert ("kimbox-image-0", "p1") == (images["tag"], images["owner"])


def test_a_network_is_found_by_a_name_of_its_own() -> None:
    """Another project can share a network of the same name: then only the id says which. An id is no name of others."""
    items = [("n1", "private"), ("x1", "private"), ("n2", "public"), ("x2", "n1")]
    body = {"networks": [{"id": id, "name": name, "project_id": id[0]} for id, name in items]}
    found = Sdk(Connection((200, body))).networks()
    assert {"public": "n2", "n1": "n1", "n2": "n2", "x1": "x1", "x2": "x2"} == found


@pytest.mark.parametrize("address", ["-oProxyCommand=id.example.org", "gw.example.org", "10.0.0.7\n", None])
def test_an_address_that_is_none(address: str | None) -> None:
    """It would be an argument of ssh, and stay in the record of the machine."""
    server = {"id": "s1", "name": "k", "status": "ACTIVE", "addresses": {"n": [{"addr": address, "version": 4}]}}
    with refused(KimboxError, "cloud-failed"):
        Sdk(Connection((200, {"servers": [server]}))).servers("k")
    with refused(KimboxError, "cloud-failed"):
        Sdk(Connection((200, {"floatingips": [{"id": "a1", "floating_ip_address": address}]}))).addresses("n2")


def test_actions_and_the_console() -> None:
    """An instance that has no console yet has an empty one."""
    connection = Connection((202, ""), (404, ""), (200, {"output": "booting\n"}))
    cloud = Sdk(connection)
    cloud.act("s1", Action.STOP)
    assert {"os-stop": None} == connection.requests[0][3]["json"]
    assert [b"", b"booting\n"] == [cloud.console("s1"), cloud.console("s1")]
