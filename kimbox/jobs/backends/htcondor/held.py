"""Explains why HTCondor holds a job, and what helps. Pure.

Codes: HTCondor manual, "Job ClassAd Attributes", HoldReasonCode. The subcode of a file transfer is an errno.
"""

from __future__ import annotations

import errno
import os

import attrs

#: The code of a job whose files are being sent to the schedd: it is not held.
SPOOLING = 16

#: Codes after which a transfer has failed; their subcode is an errno, or the exit status of a plugin in its high byte.
TRANSFER_CODES = (7, 8, 12, 13)

#: Maximum length of HTCondor's own words, in characters.
MAX_REASON = 400

RELEASE = "`kimbox job release` runs the job again"


@attrs.frozen
class Explanation:
    """Why a job is held, in words, and what helps."""

    what: str
    hint: str


#: Hold codes.
CODES = {
    1: Explanation("a user has put the job on hold", RELEASE),
    3: Explanation("the job's own policy (periodic_hold) holds it", "change the policy with --set, and submit again"),
    6: Explanation(
        "the node could not start the runner",
        "the node needs Python 3.11 and may not mount its scratch space with noexec; then " + RELEASE,
    ),
    7: Explanation("a file for the output cannot be opened", "check permissions and space; then " + RELEASE),
    8: Explanation("a file of the input cannot be opened", "submit the job again"),
    12: Explanation("the results could not be sent back", "check space and permissions here; then " + RELEASE),
    13: Explanation("the files of the job could not be sent to the node", "submit the job again, or " + RELEASE),
    14: Explanation("the folder of the submission is missing", "submit the job again"),
    21: Explanation("the node's own policy holds the job", "its administrator knows the rule; " + RELEASE),
    26: Explanation("a policy of the pool holds the job", "the administrator of the pool knows the rule; " + RELEASE),
    32: Explanation("the input is larger than the pool allows", "use --image-url, so that the image is not sent"),
    33: Explanation("the results are larger than the pool allows", "write less to output/"),
    34: Explanation(
        "the job has used more memory or disk than it asked for", "submit it with more --memory, or --set request_disk"
    ),
    46: Explanation("the job exceeded allowed_job_duration", "submit it with a longer --timeout"),
    47: Explanation("the job exceeded allowed_execute_duration", "submit it with a longer --timeout"),
}

#: Parts of HTCondor's own reason that say more than the code, with what they mean.
SIGNS = (
    (
        "VMGAHP_ERR_INTERNAL",
        Explanation(
            "the hypervisor of that node has failed to start the machine",
            "report the node to its administrator; " + RELEASE + ", on another node if there is one",
        ),
    ),
    (
        "/dev/kvm",
        Explanation(
            "that node has no KVM that works",
            "--set requirements='TARGET.HasKimboxVM =?= true' avoids such nodes, if the pool has what "
            "`kimbox job node-config` prints",
        ),
    ),
    ("memory usage exceeded", CODES[34]),
    ("emory limit", CODES[34]),
    ("allowed execute duration", CODES[47]),
)

_UNKNOWN = Explanation("HTCondor holds the job", RELEASE)


def explain(code: int | None, subcode: int | None, reason: str) -> Explanation:
    """Returns the explanation of a hold code and subcode. `reason`: HTCondor's own words, of which a part is added."""
    sign = next((found for text, found in SIGNS if text in reason), None)
    found = sign or CODES.get(code or 0, _UNKNOWN)
    what = found.what
    if code in TRANSFER_CODES and subcode and (name := _errno_words(subcode)):
        what = f"{what}: {name}"
    if reason:
        what = f"{what} ({reason[:MAX_REASON]})"
    return attrs.evolve(found, what=what)


def _errno_words(subcode: int) -> str:
    """Returns an errno in words; empty if the subcode is none."""
    return os.strerror(subcode) if subcode in errno.errorcode else ""
