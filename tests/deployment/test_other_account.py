"""Another account of the same machine, a real one, gets nothing of a running federation: no file, no run, no task."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_processes import Federation

NOBODY = 65534
TASK = """
import sys
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
client = RuntimeHttpClient.from_server_address(
    server_address=sys.argv[1], insecure=len(sys.argv) < 3,
    root_certificates=open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else None,
    interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
)
print("TASK", client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp", "flwr-serverapp"])))
"""


def as_nobody(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={"PATH": "/usr/bin:/bin", **more},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def may_run_python() -> bool:
    try:
        return os.geteuid() == 0 and as_nobody(sys.executable, "-c", "import flwr").returncode == 0
    except PermissionError:  # not even a link to it can be followed
        return False


@pytest.mark.faults
def test_another_account_gets_no_file_no_run_and_no_task(federation: Federation, tmp_path: Path) -> None:
    if not may_run_python():
        pytest.skip("needs root, and an interpreter that other accounts may run")
    federation.up()
    for folder in (federation.root, *federation.root.parents):  # what protects is the folder's own mode
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    public = federation.root / "public"  # what a client's operator is given
    public.mkdir()
    (public / "ca.crt").write_bytes(federation.authority.read_bytes())
    (public / "ca.crt").chmod(0o644)
    (public / "flower").mkdir(mode=0o777)
    (public / "flower").chmod(0o777)
    public.chmod(0o755)

    for folder in (federation.server_dir, federation.client_dir(0)):
        listed = as_nobody("ls", str(folder))
        assert listed.returncode != 0 and not listed.stdout
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"superlink.db", "ca.key", "control"} <= {path.name for path in files} or folder != federation.server_dir
        for path in files:
            read = as_nobody("cat", str(path))
            assert read.returncode != 0 and not read.stdout, path
    assert as_nobody("cat", str(public / "ca.crt")).returncode == 0  # it could read what is for all

    node = federation.process(0, "flower-supernode")
    for name in ("environ", "mem", "cwd/client"):
        assert as_nobody("head", "-c", "1", f"/proc/{node.pid}/{name}").returncode != 0

    connection = f'[superlink]\ndefault = "x"\n\n[superlink.x]\naddress = "{federation.control}"\n'
    (public / "flower" / "config.toml").write_text(f'{connection}root-certificates = "{public / "ca.crt"}"\n')
    (public / "flower" / "config.toml").chmod(0o644)
    flwr = str(Path(sys.executable).parent / "flwr")
    for words in (("list", "x"), ("supernode", "list", "x"), ("stop", "1", "x")):
        refused = as_nobody(flwr, *words, "--format", "json", FLWR_HOME=str(public / "flower"), HOME=str(public))
        assert '"success": true' not in refused.stdout, words

    words = node.cmdline()
    for where in ((f"127.0.0.1:{words[words.index('--port') + 1]}",), (federation.control, str(public / "ca.crt"))):
        refused = as_nobody(sys.executable, "-c", TASK, *where)
        assert "TASK" not in refused.stdout and ("401" in refused.stderr or "403" in refused.stderr), refused.stderr
