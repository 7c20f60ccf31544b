"""Notes which files execute anything while a flag is set. It is imported by every Python process that finds it."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path
from types import FrameType

FOLDER = Path(__file__).resolve().parent
with (FOLDER / "flag").open("r+b") as file:
    flag = mmap.mmap(file.fileno(), 1)  # shared by all processes
seen: set[str] = set()


def watch(frame: FrameType, event: str, _: object) -> None:
    """Write down the file of a function that is called: each file once a process."""
    if event == "call" and flag[0]:
        name = frame.f_code.co_filename
        if name not in seen and frame.f_code.co_name != "<module>":
            seen.add(name)
            with (FOLDER / f"{os.getpid()}.seen").open("a") as file:
                file.write(f"{name}\n")


sys.setprofile(watch)
threading.setprofile(watch)
