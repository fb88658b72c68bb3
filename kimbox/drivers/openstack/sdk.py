"""The interface `Cloud` with openstacksdk: the only module that imports it, when it is needed.

openstacksdk reads clouds.yaml and the variables OS_*, finds the services, and gets a new token when one has ended. It
would read clouds.yaml and secure.yaml of the current folder, too: that of a stranger's spec could send the user's
password and images elsewhere, and names Python code that runs here (`vendor_hook`). kimbox does not let it. The
requests are those of the API references of Nova, Neutron and Glance, because its own functions do more than their
documentation describes. For example, its `create_server` deletes an instance that runs but has no address yet.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from kimbox.drivers.openstack.cloud import Action, Address, CloudImage, Flavor, Limit, Server, ServerOrder, Status
from kimbox.errors import KimboxError, MissingToolError
from kimbox.files import size_words
from kimbox.image.formats import glance
from kimbox.log import printable

#: Timeout of a request, in seconds: of the connection, and of each part of the answer.
REQUEST_TIMEOUT_S = 60

#: Version of Nova's API: the first with the fields of a flavor that are used, and with types of keys.
NOVA_VERSION = "2.2"

#: Maximum number of items of a list, and of bytes of a message that is shown.
MAX_ITEMS, MAX_MESSAGE = 1000, 500

#: Maximum size of an answer, in bytes: a list of instances has 4 KB for each.
MAX_ANSWER_BYTES = 16 << 20

#: What `_error` calls an upload.
UPLOAD = "take an image"

#: Number of lines at the end of the console that are read.
CONSOLE_LINES = 500

#: Kinds of files of openstacksdk -> their names without a suffix.
FILES = {"config": "clouds", "secure": "secure", "vendor": "clouds-public"}

#: Names in Nova's limits -> names in `Cloud.limits`.
_NOVA_LIMITS = {
    "instances": ("totalInstancesUsed", "maxTotalInstances"),
    "cores": ("totalCoresUsed", "maxTotalCores"),
    "ram_mib": ("totalRAMUsed", "maxTotalRAMSize"),
}


#: Words of Nova and Neutron for a quota that is exceeded. Not all of their messages have the word itself.
_OF_LIMITS = re.compile(r"quota|maximum number of", re.IGNORECASE)


def is_installed() -> bool:
    """Whether openstacksdk is installed."""
    return importlib.util.find_spec("openstack") is not None


def connect(name: str | None) -> Sdk:
    """Opens a cloud of clouds.yaml; without a name, that of OS_CLOUD or of the other variables OS_*.

    Raises MissingToolError, and KimboxError (`cloud-login`) if no such cloud is configured or it refuses the login.
    """
    try:
        from keystoneauth1.exceptions import ClientException
        from openstack.config import loader
        from openstack.connection import Connection
        from openstack.exceptions import SDKException
    except ImportError:
        raise MissingToolError(
            "openstacksdk is not installed",
            hint="pip install 'kimbox[openstack]'",
            fields={"program": "openstack"},
        ) from None
    try:
        files: dict[str, Any] = {f"{kind}_files": _files(loader, stem) for kind, stem in FILES.items()}
        config = loader.OpenStackConfig(app_name="kimbox", **files | {"session_constructor": _session})
        connection = Connection(config=config.get_one(cloud=name, api_timeout=REQUEST_TIMEOUT_S))
        connection.authorize()
    except (SDKException, ClientException, OSError) as error:
        raise KimboxError(
            f"no login to the cloud {name or 'of the variables OS_*'}: {_clean(str(error))}",
            code="cloud-login",
            hint="~/.config/openstack/clouds.yaml has the clouds (`openstack: {cloud: NAME}` in the spec, or OS_CLOUD, "
            "selects one), or the file that OS_CLIENT_CONFIG_FILE names; openrc files set the variables OS_*",
            fields={"cloud": name or ""},
        ) from None
    return Sdk(connection)


def _session(**options: Any) -> Any:
    """Returns a session of keystoneauth that reads no more than MAX_ANSWER_BYTES of an answer, also at the login."""
    import requests
    from keystoneauth1.session import Session, TCPKeepAliveAdapter

    def bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise requests.RequestException(f"an answer has more than {size_words(MAX_ANSWER_BYTES)}")
            yield piece

    class Adapter(TCPKeepAliveAdapter):
        def send(self, *words: Any, **more: Any) -> requests.Response:
            answer = super().send(*words, **more)
            read = answer.iter_content
            answer.iter_content = lambda *words, **more: bounded(read(*words, **more))  # type: ignore[method-assign]
            return answer

    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, Adapter())
    return Session(session=made, **options)


def _files(loader: Any, stem: str) -> list[str]:
    """Returns the places of a file of openstacksdk: in the folders of the user and of the host."""
    folders = (loader.CONFIG_HOME, loader.UNIX_CONFIG_HOME, loader.SITE_CONFIG_HOME, loader.UNIX_SITE_CONFIG_HOME)
    return [f"{folder}/{stem}{end}" for folder in folders for end in (*loader.YAML_SUFFIXES, *loader.JSON_SUFFIXES)]


def _clean(text: str) -> str:
    return printable(" ".join(text.split()))[:MAX_MESSAGE]


def _message(text: str) -> str:
    """Returns the message in the body of an error of Nova, Neutron or Glance."""
    with contextlib.suppress(ValueError, AttributeError):
        for value in json.loads(text).values():
            found = value.get("message") if isinstance(value, dict) else value
            if isinstance(found, str):
                return _clean(found)
    return _clean(text)


def _error(what: str, status: int, body: str) -> KimboxError:
    """Returns the error for a refused request. Nova and Neutron have no status of their own for a quota."""
    text = f"the cloud refused to {what} ({status}): {_message(body)}"
    fields = {"status": str(status), "request": what}
    if status == 401:
        hint = "the login or its password has changed: see clouds.yaml or the variables OS_*"
        return KimboxError(text, code="cloud-login", hint=hint, fields=fields)
    if status == 413 or (status in (403, 409) and _OF_LIMITS.search(body)):
        hint = "remove what is no longer needed, or ask the cloud for a larger quota"
        return KimboxError(text, code="cloud-quota", hint=hint, fields=fields)
    if status == 415 or (status == 400 and what == UPLOAD):
        hint = "ask for the disk formats that the cloud permits"
        return KimboxError(text, code="image-refused", hint=hint, fields=fields)
    return KimboxError(text, code="cloud-not-found" if status == 404 else "cloud-failed", fields=fields)


@attrs.frozen
class Sdk:
    """A project of a cloud, through a connection of openstacksdk."""

    connection: Any

    # ---- requests

    def _call(self, service: str, method: str, path: str, what: str, **options: Any) -> Any:
        """Sends a request. Returns the answer. Raises KimboxError; `what` completes the sentence `refused to ...`."""
        from keystoneauth1.exceptions import ClientException, Unauthorized
        from openstack.exceptions import SDKException

        if service == "compute":
            options.setdefault("microversion", NOVA_VERSION)
        try:
            answer = getattr(self.connection, service).request(path, method, raise_exc=False, **options)
        except Unauthorized as error:
            raise _error(what, 401, str(error)) from None
        except (SDKException, ClientException, OSError) as error:
            raise KimboxError(
                f"the cloud did not {what}: {_clean(str(error))}", code="cloud-failed", fields={"request": what}
            ) from None
        if answer.status_code >= 400:
            raise _error(what, answer.status_code, answer.text)
        return answer

    def _list(self, service: str, path: str, key: str, what: str, **params: str) -> list[dict[str, Any]]:
        answer = self._call(service, "GET", path, what, params={"limit": str(MAX_ITEMS), **params}).json()
        return list(answer[key])

    def _delete(self, service: str, path: str, what: str) -> None:
        with _unless_gone():
            self._call(service, "DELETE", path, what)

    @property
    def _project(self) -> str:
        """Id of the project."""
        return str(self.connection.current_project_id)

    # ---- images

    def images(self, *, tag: str = "", name: str = "") -> list[CloudImage]:
        wanted = {"tag": tag} if tag else {"name": name}
        wanted["owner"] = self._project  # not the public ones of others; an administrator sees those of all projects
        found = self._list("image", "/images", "images", "list images", sort="created_at:asc", **wanted)
        return [
            CloudImage(
                item["id"],
                item.get("name") or "",
                str(item["status"]).upper(),
                item.get("os_hash_value") or "" if item.get("os_hash_algo") == "sha512" else "",
                item.get(glance.DIGEST) or "",
            )
            for item in found
        ]

    def create_image(self, request: Mapping[str, Any]) -> str:
        return str(self._call("image", "POST", "/images", "create an image", json=dict(request)).json()["id"])

    def upload(self, image: str, disk: Path) -> None:
        # A new token first: openstacksdk repeats a request whose token has ended, but not what it has read of the file.
        self.connection.session.invalidate()
        headers = {"Content-Type": "application/octet-stream", "Accept": ""}
        with disk.open("rb") as file:
            self._call("image", "PUT", f"/images/{image}/file", UPLOAD, headers=headers, data=file)

    def delete_image(self, image: str) -> None:
        self._delete("image", f"/images/{image}", "delete an image")

    # ---- what the project has

    def flavors(self) -> list[Flavor]:
        return [
            Flavor(
                item["id"],
                item["name"],
                int(item["vcpus"]),
                int(item["ram"]),
                int(item["disk"]),
                int(item.get("OS-FLV-EXT-DATA:ephemeral") or 0),
            )
            for item in self._list("compute", "/flavors/detail", "flavors", "list flavors")
        ]

    def networks(self) -> dict[str, str]:
        # Any project can share a network of any name with this one, and must not get its instances that way.
        found = self._list("network", "/networks", "networks", "list networks")
        names = Counter(item["name"] for item in found)
        return {item["name"]: item["id"] for item in found if names[item["name"]] == 1} | {
            item["id"]: item["id"] for item in found
        }

    def limits(self) -> dict[str, Limit]:
        absolute = self._call("compute", "GET", "/limits", "show its quotas").json()["limits"]["absolute"]
        found = {name: Limit(int(absolute[used]), int(absolute[most])) for name, (used, most) in _NOVA_LIMITS.items()}
        found["keys"] = Limit(len(self.keys()), int(absolute["maxTotalKeypairs"]))
        path = f"/quotas/{self._project}/details"
        with _unless_gone():  # an extension of Neutron
            quota = self._call("network", "GET", path, "show its quotas").json()["quota"]
            for name, key in {"addresses": "floatingip", "ports": "port"}.items():
                if key in quota:
                    found[name] = Limit(int(quota[key]["used"]), int(quota[key]["limit"]))
        return found

    def keys(self) -> list[str]:
        return [str(item["keypair"]["name"]) for item in self._list("compute", "/os-keypairs", "keypairs", "list keys")]

    def import_key(self, name: str, public_key: str) -> None:
        pair = {"name": name, "public_key": public_key, "type": "ssh"}
        self._call("compute", "POST", "/os-keypairs", "import a key", json={"keypair": pair})

    def delete_key(self, name: str) -> None:
        self._delete("compute", f"/os-keypairs/{name}", "delete a key")

    # ---- instances

    def servers(self, name: str) -> list[Server]:
        found = self._list("compute", "/servers/detail", "servers", "list instances", name=f"^{name}$")
        return [_server(self._with_fault(item)) for item in found if item["name"] == name]

    def _with_fault(self, item: dict[str, Any]) -> dict[str, Any]:
        """Adds the reason of a failure: a list of Nova does not have it for an instance that no node has taken."""
        if item["status"] != Status.ERROR or item.get("fault"):
            return item
        with _unless_gone():
            return dict(self._call("compute", "GET", f"/servers/{item['id']}", "show an instance").json()["server"])
        return item

    def create_server(self, order: ServerOrder) -> None:
        server: dict[str, Any] = {
            "name": order.name,
            "imageRef": order.image,
            "flavorRef": order.flavor,
            "networks": [{"uuid": order.network}],
            "key_name": order.key,
            "metadata": dict(order.metadata),
            "config_drive": True,
        }
        if order.user_data:
            server["user_data"] = base64.b64encode(order.user_data).decode()
        self._call("compute", "POST", "/servers", "create an instance", json={"server": server})

    def _act(self, server: str, what: str, action: str, value: Any = None) -> None:
        self._call("compute", "POST", f"/servers/{server}/action", what, json={action: value})

    def act(self, server: str, action: Action) -> None:
        self._act(server, f"{action.removeprefix('os-')} an instance", str(action))

    def console(self, server: str) -> bytes:
        body = {"os-getConsoleOutput": {"length": CONSOLE_LINES}}
        with _unless_gone():  # also before the instance has a console
            answer = self._call("compute", "POST", f"/servers/{server}/action", "show a console", json=body).json()
            return str(answer.get("output") or "").encode(errors="replace")
        return b""

    def snapshot(self, server: str, name: str) -> None:
        self._act(server, "make an image of an instance", "createImage", {"name": name})

    def rebuild(self, server: str, image: str) -> None:
        self._act(server, "rebuild an instance", "rebuild", {"imageRef": image})

    def delete_server(self, server: str) -> None:
        self._delete("compute", f"/servers/{server}", "delete an instance")

    # ---- addresses

    def addresses(self, network: str) -> list[Address]:
        path, what = "/floatingips", "list addresses"
        of = {"floating_network_id": network, "project_id": self._project}  # an administrator sees those of others
        found = self._list("network", path, "floatingips", what, **of)
        return [_address(item) for item in found]

    def allocate(self, network: str, description: str) -> Address:
        body = {"floatingip": {"floating_network_id": network, "description": description}}
        try:
            answer = self._call("network", "POST", "/floatingips", "allocate an address", json=body)
        except KimboxError as error:
            if "IpAddressGenerationFailure" in error.message or "No more IP addresses" in error.message:
                raise KimboxError(error.message, code="no-address", fields=error.fields) from None
            raise
        return _address(answer.json()["floatingip"])

    def attach(self, address: str, server: str) -> None:
        ports = self._list("network", "/ports", "ports", "list ports", device_id=server)
        if not ports:
            raise KimboxError("the instance has no port", code="cloud-not-found", fields={"server": server})
        body = {"floatingip": {"port_id": ports[0]["id"]}}
        self._call("network", "PUT", f"/floatingips/{address}", "attach an address", json=body)

    def release(self, address: str) -> None:
        self._delete("network", f"/floatingips/{address}", "release an address")


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Ends the block without an error if what it requests does not exist."""
    try:
        yield
    except KimboxError as error:
        if error.code != "cloud-not-found":
            raise


def _server(item: Mapping[str, Any]) -> Server:
    fixed = [
        _ipv4(address["addr"])
        for addresses in item.get("addresses", {}).values()
        for address in addresses
        if address.get("version") == 4 and address.get("OS-EXT-IPS:type", "fixed") == "fixed"
    ]
    fault = _clean(str(item.get("fault", {}).get("message", "")))
    is_busy = bool(item.get("OS-EXT-STS:task_state"))
    return Server(str(item["id"]), str(item["status"]), fault, tuple(fixed), is_busy)


def _address(item: Mapping[str, Any]) -> Address:
    is_free = not item.get("port_id")
    return Address(item["id"], _ipv4(item["floating_ip_address"]), is_free, item.get("description") or "")


def _ipv4(text: object) -> str:
    """Returns an address in an answer. It becomes an argument of ssh. Raises KimboxError (`cloud-failed`)."""
    try:
        return str(ipaddress.IPv4Address(str(text)))
    except ValueError:
        reason = f"the cloud has told an address that is none: {_clean(str(text))}"
        raise KimboxError(reason, code="cloud-failed", fields={"request": "tell an address"}) from None
