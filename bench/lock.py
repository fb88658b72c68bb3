"""Processor time to update the pins of five local repositories with warm mirrors, and to check the lock, with limits.

    python -m bench.lock [-n 7]

Each measurement is a process of kimbox with its git processes. The durations are for information: other processes on
the host change them. The packages of the image are locked before, and not updated.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.common import medians, options, show, timed
from kimbox.run import run

REPOSITORIES = 5

#: Number of commits and files of each repository.
COMMITS, FILES = 20, 200

MOVE = [word for number in range(REPOSITORIES) for word in ("--update", f"source{number}")]
VERBS = {"kimbox lock --update NAME...": ["lock", *MOVE], "kimbox lock --check": ["lock", "--check"]}

#: Maximum processor time of each command, in seconds.
LIMITS_S = {"kimbox lock --update NAME...": 1.0, "kimbox lock --check": 0.5}


def make(folder: Path) -> None:
    """Writes a spec and its repositories to a folder."""
    lines = ["kimbox: 1", "name: measured", "base: [_defaults/debian.yaml]", "repositories:"]
    for number in range(REPOSITORIES):
        source = folder / f"source{number}"
        source.mkdir()
        git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        run([*git, "init", "-q", "-b", "main"])
        for commit in range(COMMITS):
            for name in range(FILES):
                (source / f"file{name}").write_text(f"{number} {name} {commit if name % COMMITS == 0 else ''}\n")
            run([*git, "add", "-A"])
            run([*git, "commit", "-q", "--allow-empty", "-m", f"commit {commit}"])
        lines.append(f'  source{number}: {{url: "file://{source}", ref: main}}')
    (folder / "kimbox.yaml").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=7)
    times: dict[str, list[float]] = {name: [] for name in VERBS}
    cpu: dict[str, list[float]] = {name: [] for name in VERBS}
    with tempfile.TemporaryDirectory(prefix="kimbox-bench-") as place:
        folder = Path(place)
        make(folder)
        env = {"KIMBOX_HOME": str(folder / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
        run([sys.executable, "-m", "kimbox", "lock"], cwd=folder, env=env)
        for _ in range(arguments.n):
            for name, words in VERBS.items():
                duration_s, cpu_s = timed([sys.executable, "-m", "kimbox", *words], cwd=folder, env=env)
                times[name].append(duration_s)
                cpu[name].append(cpu_s)
    median = medians(cpu, 3)
    ok = all(median[name] <= limit for name, limit in LIMITS_S.items())
    show({"median_s": medians(times, 3), "cpu_s": median, "limit_cpu_s": LIMITS_S, "ok": ok})


if __name__ == "__main__":
    main()
