"""Detects what looks like a secret of a user, by the path of a file and by its first bytes. Pure functions.

A secret that is encrypted, or in the middle of a file, is not found: this is help for the user, and no proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kimbox.image.sanitize import key_formats, secret_paths
from kimbox.image.sanitize.key_formats import Kind

#: Number of bytes at the start of a file that are examined.
HEAD_BYTES = 4096

#: Folders with files that users write. Others have the files of packages.
FOLDERS = ("/etc", "/home", "/opt", "/root", "/srv", "/usr/local", "/var/lib", "/var/www")

#: Files with passwords or tokens, whatever is in them: the end of the path, and what it is.
NAMES: tuple[tuple[bytes, str], ...] = (
    (b"/.netrc", "passwords (.netrc)"),
    (b"/_netrc", "passwords (.netrc)"),
    (b"/.git-credentials", "passwords (git)"),
    (b"/.pgpass", "passwords (PostgreSQL)"),
    (b"/.aws/credentials", "credentials of a cloud (AWS)"),
    (b"/.boto", "credentials of a cloud (boto)"),
    (b"/.s3cfg", "credentials of a cloud (s3cmd)"),
    (b"/rclone/rclone.conf", "credentials of a cloud (rclone)"),
    (b"/gcloud/application_default_credentials.json", "credentials of a cloud (Google)"),
    (b"/gcloud/credentials.db", "credentials of a cloud (Google)"),
    (b"/gcloud/access_tokens.db", "credentials of a cloud (Google)"),
    (b"/.azure/accessTokens.json", "credentials of a cloud (Azure)"),
    (b"/.azure/msal_token_cache.json", "credentials of a cloud (Azure)"),
    (b"/.kube/config", "credentials (Kubernetes)"),
    (b"/gh/hosts.yml", "token (GitHub)"),
    (b"/.terraform.d/credentials.tfrc.json", "token (Terraform)"),
    (b"/.vault-token", "token (Vault)"),
    (b"/huggingface/token", "token (Hugging Face)"),
    (b".kdbx", "passwords (KeePass)"),
)

#: Files with passwords or tokens if their head has these bytes.
NAMES_AND_WORDS: tuple[tuple[bytes, bytes, str], ...] = (
    (b"/.docker/config.json", b'"auth"', "password (Docker)"),
    (b"/containers/auth.json", b'"auth"', "password (Podman)"),
    (b"/.npmrc", b"_auth", "token (npm)"),
    (b"/.pypirc", b"password", "password (PyPI)"),
    (b"/.my.cnf", b"password", "password (MySQL)"),
)

#: Texts that begin as a private key does, or have the form that a service gives its tokens.
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_TOKENS = re.compile(
    rb"AKIA[0-9A-Z]{16}|gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{36}|glpat-[A-Za-z0-9_-]{20}"
    rb"|xox[abprs]-[0-9A-Za-z-]{20}|sk_live_[0-9A-Za-z]{24}|hf_[A-Za-z]{34}|\"private_key_id\"|AccountKey="
)


def may_hold(path: bytes) -> bool:
    """Whether the head of the file at this path in the root, or of the same name elsewhere, is worth reading."""
    return path.startswith(tuple(f"{folder}/".encode() for folder in FOLDERS))


def kind_of(path: bytes, head: Callable[[], bytes]) -> str | None:
    """Returns what a file seems to hold; None if nothing is known. `head` returns its first HEAD_BYTES bytes."""
    for end, kind in NAMES:
        if path.endswith(end):
            return kind
    shared = secret_paths.kind_of_path(path, head)
    if shared is Kind.SECRET:
        return str(shared)
    data = head()
    for end, word, kind in NAMES_AND_WORDS:
        if path.endswith(end) and word in data:
            return kind
    if _PRIVATE_KEY.search(data):
        return "private key"
    if found := key_formats.kind_of_head(data):
        return str(found)
    return "token" if _TOKENS.search(data) else None
