"""Simulate a federation: ``python sim.py [CONFIG] [key=value ...] [--flag value ...] [--dry-run]``; ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.help import complete, help_text
from fedmoe.loading import load_points, points_of_run
from fedmoe_api.search import run_search
from fedmoe_api.simulation import federate, planned
from fedmoe_server.report.sweep import run_sweep


def main(words: list[str], program: str = "python sim.py") -> int:
    """Run what the command line asks for; return the exit status: 0 done, 2 something for the user to put right."""
    try:
        if {"--help", "-h"} & set(words):
            print(help_text([word for word in words if not word.startswith("-")], program))
            return 0
        dry, words = "--dry-run" in words, [word for word in words if word != "--dry-run"]
        resume, words = _resume_folder(words)
        described = load_points(words) if resume is None else points_of_run(resume, words)
        points, warnings, search, _ = described
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if dry:
            for point in points.values():
                planned(point)
        elif search is not None:
            run_search(described, search, resume)
        elif list(points) == [""]:
            federate(planned(points[""]), resume)
        else:
            run_sweep(points, lambda point: federate(planned(point)))
        return 0
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume and the run's folder", file=sys.stderr)
        return 130


def command(program: str = "fedmoe") -> int:
    """Run this process's own command line."""
    complete()
    sys.path.append(str(Path.cwd()))  # a strategy of the user's own may lie in the folder that the command is run in
    return main(sys.argv[1:], program)


def _resume_folder(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the folder after ``--resume``, if it is there, and the other words."""
    if "--resume" not in words:
        return None, words
    at = words.index("--resume")
    if at + 1 == len(words):
        raise FedMoEError("--resume needs the folder of the run, or search, to go on with")
    return Path(words[at + 1]), words[:at] + words[at + 2 :]


if __name__ == "__main__":
    sys.exit(command("python sim.py"))
