"""Makes ``simulation_apps`` importable by name, here and in the hosts, which get this process's search path."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
