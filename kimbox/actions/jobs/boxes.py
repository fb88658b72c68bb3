"""kimbox job run with several boxes: the job runs in each, and the results are compared with those of the first."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from kimbox.actions.jobs import run
from kimbox.actions.jobs.request import Done, RunRequest
from kimbox.errors import KimboxError
from kimbox.jobs import listing
from kimbox.jobs.listing import Difference, Listing
from kimbox.jobs.result import Outcome, Verdict
from kimbox.jobs.vet import OUTPUT
from kimbox.log import log
from kimbox.newfiles import refuse_existing
from kimbox.project.project import Project


@attrs.frozen
class BoxResult:
    """The end of the job in a box. `done` is None if it did not start there; the verdict then has the reason."""

    box: str
    verdict: Verdict
    done: Done | None
    #: Digest of the files in `output`.
    digest: str
    #: The files in which they differ from those of the first box.
    differences: tuple[Difference, ...]


def run_on(request: RunRequest, projects: Mapping[str, Project]) -> list[BoxResult]:
    """Runs a job in each box, one after the other. The results of each are in a folder of its name in `output`.

    `projects`: by name of the box. A box that cannot be made has the verdict `host`, and the others run. Raises
    StateError (`file-exists`). After Ctrl-C no other box runs.
    """
    refuse_existing(request.output)
    found: list[BoxResult] = []
    first: Listing | None = None
    for name, project in projects.items():
        done = None
        with log.step(f"running the job in {name}"):
            try:
                done = run.run(attrs.evolve(request, project=project, output=request.output / name))
                verdict = done.verdict
            except KimboxError as error:
                verdict = Verdict(Outcome.HOST, reason=error.message)
        files = listing.of_folder(request.output / name / OUTPUT)
        first = files if first is None else first
        found.append(BoxResult(name, verdict, done, files.digest, tuple(listing.compare(first, files))))
        if verdict.outcome is Outcome.INTERRUPTED:
            break
    return found
