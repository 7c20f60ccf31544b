"""The program that a node starts for each message, in place of Flower's own of that name.

Flower's node starts ``flwr-clientapp`` by name. A folder with this small program first on the node's ``PATH`` has each
message handed to the resident process, which forks and runs Flower's program there, with everything imported already.
Where there is no resident process, Flower's program is started as ever. It uses the standard library alone, and no
site packages: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedmoe_client.device.resident_call import SOCKET

PROGRAM = "flwr-clientapp"
PATIENCE = 120.0  # seconds for a resident process that is loading a new run's model

SCRIPT = """\
#!/bin/sh
'''exec' "{python}" -IS "$0" "$@"
' '''
import json, os, socket, sys

FOLDER, ADDRESS, FLOWERS_OWN, PATIENCE = {folder!r}, {address!r}, {real!r}, {patience!r}


def handed_over():
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            folder = os.open(FOLDER, os.O_RDONLY)
            short = "/proc/self/fd/%d/%s" % (folder, ADDRESS)
            connection.connect(short if os.path.isdir("/proc/self/fd") else os.path.join(FOLDER, ADDRESS))
            content = {{"do": "clientapp", "words": sys.argv[1:], "watch": os.getppid(), "sizes": []}}
            request = json.dumps(content).encode()
            socket.send_fds(connection, [len(request).to_bytes(8, "little")], [1, 2])
            connection.sendall(request)
            return bool(connection.recv(1))
    except OSError:
        return False


if not handed_over():
    os.execv(FLOWERS_OWN, [FLOWERS_OWN, *sys.argv[1:]])
"""


def install_launcher(state_dir: Path) -> Path:
    """Write the program for a client's state folder and return the folder to put first on the node's ``PATH``."""
    programs = state_dir / "bin"
    programs.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = programs / PROGRAM
    real = Path(sys.executable).parent / PROGRAM
    text = SCRIPT.format(
        python=sys.executable, folder=str(state_dir.absolute()), address=SOCKET, real=str(real), patience=PATIENCE
    )
    partial = programs / f".{PROGRAM}-{os.getpid()}"
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o700)
    partial.replace(target)
    return programs
