"""Hands Flower's messages to the resident process: ``flwr-clientapp`` as a small program. Nothing heavy here.

Flower's node starts that program by name for each message. A folder with a small program of the same name first on the
node's ``PATH`` hands the message to the resident process, which forks (``flower_program``). Where there is no resident
process, Flower's own program is started.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedmoe.files import write_file
from fedmoe_client.device.resident_call import SOCKET

PROGRAM = "flwr-clientapp"
PATIENCE = 120.0  # seconds for a resident process that is loading a new run's model

# It uses the standard library alone, and no site packages: it starts in a few hundredths of a second.
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


def install_program(state_dir: Path) -> Path:
    """Write the program for a client's state folder and return the folder to put first on the node's ``PATH``."""
    programs = state_dir / "bin"
    programs.mkdir(mode=0o700, parents=True, exist_ok=True)
    real = str(Path(sys.executable).parent / PROGRAM)
    folder = str(state_dir.absolute())
    text = SCRIPT.format(python=sys.executable, folder=folder, address=SOCKET, real=real, patience=PATIENCE)
    write_file(programs / PROGRAM, text.encode(), mode=0o700)
    return programs
