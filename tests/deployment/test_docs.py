"""The commands of the tutorial's last chapter, a server and three clients, as they stand there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from site_pages import deployed_commands

pytestmark = pytest.mark.faults  # minutes; the end-to-end test of CI runs the same commands


def test_the_docs_work_as_they_stand(federation: Any) -> None:
    script = deployed_commands().replace("127.0.0.1:9092", federation.address)
    script = "set -e\n" + script.replace("127.0.0.1:8000", federation.control)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], cwd=federation.root, env=federation.environment(PATH=path),
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (federation.root / "runs").iterdir()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["rounds"] == 5
    assert result["failed_replies"] == 0
    ranked = [line for line in done.stdout.splitlines() if line[:4].strip().isdigit()]
    assert len(ranked) == 10
    assert federation.processes() == []
