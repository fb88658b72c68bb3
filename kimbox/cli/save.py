"""kimbox save: put the disk of a halted box into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report, table
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.saves.found import Found
    from kimbox.actions.saves.save import Saved
    from kimbox.image.saves.manifest import Manifest

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BOX] [URL]",
        help="Name of the box (default: the spec of this folder), and the store (default: `store` of the spec).",
        autocompletion=completers.boxes,
    ),
]


Listing = Annotated[bool, typer.Option("--list", help="List the saves in the store, and write nothing.")]
Keep = Annotated[
    int | None,
    typer.Option("--keep", metavar="N", min=1, max=1000, help="Keep N saves, this one included. Default: all."),
]
Fat = Annotated[bool, typer.Option("--fat", help="Save the image below the disk, too: the save needs nothing else.")]
Share = Annotated[
    bool,
    typer.Option("--share", help="The save is for others: refuse it while files of users look like secrets."),
]
ShareSecret = Annotated[
    list[str] | None,
    typer.Option(
        "--share-secret", metavar="PATH", help="With --share: a file or folder in the box that others may have."
    ),
]
Sign = Annotated[Path | None, typer.Option("--sign", metavar="KEY", help="The private ssh key that signs the save.")]


def save(
    words: Words = None,
    file: target.File = None,
    list_saves: Listing = False,
    keep: Keep = None,
    fat: Fat = False,
    sign: Sign = None,
    share: Share = False,
    share_secret: ShareSecret = None,
) -> None:
    """Save a halted box in a store, from which `kimbox create --from` makes it again, here or on another host.

    Only what differs from the image of the box is saved, in chunks of 1 MiB, compressed with zstd. A chunk that the
    save before has is not uploaded again. The save names its image by key; whoever starts it has the image, or builds
    it from spec and lock, which are in the save. With --fat the image is in the save.

    A save is there as a whole or not at all. Everything that is uploaded is read back and compared. Then the manifest
    of the save is written, unless another save was written meanwhile (`save-conflict`). The saves before stay: with
    --keep N, those beyond N are removed at the end, with the chunks that no other save needs. An interrupted save
    changes nothing, and the next one continues with what it has uploaded.

    URL is a folder, or a file:, sftp:, https:, oci:, s3:, gs: or az: URL; docs/stores.md describes each. In a spec,
    `store: URL` may contain {name}, which stands for the name of the box. A store holds the saves of one box.

    The ssh host key of the box, its machine-id and its random seeds are not in a save. Your files are. What looks like
    a secret among them, by name or first bytes, is listed: private keys, .netrc, tokens, credentials of clouds. With
    --share such a save is refused, unless each is named with --share-secret. A sealed box is not saved.

    The JSON has: url, number, saved_at, added_bytes, uploaded_bytes (less than added_bytes if an interrupted save had
    uploaded some), size_bytes (of all that the save needs), chunks, removed (numbers of saves), cleaned (paths in the
    box) and secrets (path and kind of each). With --list: url and saves, newest first.

    \b
    Examples:
      kimbox halt && kimbox save /srv/saves/study
      kimbox save openkim-dev file:///srv/saves/openkim-dev --keep 5
      kimbox save --list /srv/saves/study
      kimbox save study /srv/shared/study --share --share-secret /home/vagrant/example.pem
      kimbox save --fat --sign ~/.ssh/id_ed25519 study /srv/saves/study
    """
    box, url = _parse(words or [])
    if list_saves:
        if keep is not None or fat or sign is not None or share or share_secret:
            raise UsageError("--list excludes the other options", code="usage", fields={"option": "--list"})
        _list(url or _needed_store(box, file))
        return
    from kimbox.actions.saves import save as saving

    if share_secret and not share:
        raise UsageError("--share-secret needs --share", code="usage", fields={"option": "--share-secret"})
    place, named = url or _needed_store(box, file), tuple(share_secret or ())
    request = saving.SaveRequest(target.machine(box, file), place, keep, fat, sign, share, named)
    _report(request.machine.name, saving.save(request))


def _report(name: str, done: Saved) -> None:
    """Prints the result of a save."""
    from kimbox.files import size_words

    manifest = done.manifest
    result = {"name": name, "url": done.url, "uploaded_bytes": done.uploaded_bytes, **summary_of_save(manifest)}
    result |= {"removed": list(done.removed), "cleaned": list(done.cleaned)}
    result["secrets"] = [{"path": one.path, "kind": one.kind} for one in done.secrets]
    text = f"saved {name} as number {manifest.number} in {done.url}: {size_words(done.uploaded_bytes)} uploaded"
    lines = [text]
    if done.removed:
        lines.append(f"removed {len(done.removed)} older saves")
    lines += [f"it has {one.path}: {one.kind}" for one in done.secrets]
    report("save", result, "\n".join(lines))


def summary_of_save(manifest: Manifest) -> dict[str, Any]:
    """The values of a save that both forms of the verb report."""
    return {
        "number": manifest.number,
        "saved_at": manifest.saved_at,
        "box": manifest.box,
        "machine": manifest.machine,
        "image": manifest.base.image,
        "fat": manifest.base.contents is not None,
        "chunks": manifest.disk.chunks,
        "disk_bytes": manifest.disk.size_bytes,
        "added_bytes": manifest.added_bytes,
        "size_bytes": manifest.size_bytes,
    }


def _list(url: str) -> None:
    """Prints the saves in a store."""
    import contextlib

    from kimbox.actions.saves import found as finding
    from kimbox.transfer.stores.opening import open_store

    with contextlib.closing(open_store(url)) as store:
        saves = finding.listed(store)
        report("save", {"url": store.url, "saves": [_row(one) for one in saves]}, _text(saves, store.url))


def _row(one: Found) -> dict[str, Any]:
    if one.manifest is None:
        return {"number": one.number, "problem": one.problem}
    return {**summary_of_save(one.manifest), "signed": one.is_signed, "problem": None}


def _text(saves: list[Found], url: str) -> str:
    from kimbox.files import size_words

    if not saves:
        return f"{url} has no save"
    rows = [["NUMBER", "SAVED", "BOX", "ADDED", "SIZE", "IMAGE", "NOTES"]]
    for one in saves:
        save = one.manifest
        if save is None:
            rows.append([str(one.number), "", "", "", "", "", one.problem or ""])
            continue
        notes = ", ".join(word for word, holds in (("fat", save.base.contents), ("signed", one.is_signed)) if holds)
        sizes = [size_words(save.added_bytes), size_words(save.size_bytes)]
        rows.append([str(save.number), save.saved_at, save.machine, *sizes, save.base.image[:12], notes])
    return table(rows)


def _parse(words: list[str]) -> tuple[str | None, str | None]:
    """Returns the box and the URL among the words. Raises UsageError for other words."""
    from kimbox.transfer.stores.opening import is_url

    urls = [word for word in words if is_url(word)]
    boxes = [word for word in words if not is_url(word)]
    if len(urls) > 1 or len(boxes) > 1:
        hint = "`kimbox save [BOX] [URL]`; the URL of a folder begins with /, ./, ../ or file:"
        raise UsageError("one box and one URL can be given", code="usage", hint=hint)
    return (boxes[0] if boxes else None), (urls[0] if urls else None)


def store_of(box: str | None, file: Path | None) -> str | None:
    """Returns the store of the spec; None if it has none."""
    project = target.project(box, file, clones=True)
    store = project.box.store
    return None if store is None else store.replace("{name}", target.clone(box, file) or project.name)


def _needed_store(box: str | None, file: Path | None) -> str:
    """Returns the store of the spec. Raises UsageError if it has none."""
    store = store_of(box, file)
    if store is None:
        name = target.project(box, file, clones=True).name
        raise UsageError(
            f"the spec of {name} has no `store`, and no URL is given",
            code="usage",
            hint=f"`kimbox save {name} URL`, or write `store: URL` into the spec",
        )
    return store
