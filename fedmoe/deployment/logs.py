"""Log lines that say which run and which client they are about: as text or, for what collects logs, as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("fedmoe", "fedmoe_client", "fedmoe_server")


def log_about(as_json: bool = False, file: Path | None = None, **about: Any) -> None:
    """Let what our packages log from now on be lines with ``about``: ``run``, ``client``.

    file: that they are added to; None: standard error.
    """
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(_Lines({name: str(value) for name, value in about.items() if value is not None}, as_json))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    def __init__(self, about: Mapping[str, str], as_json: bool) -> None:
        super().__init__()
        self._about = about
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line; a traceback follows it, or is a field of the JSON."""
        when, said = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            told = {"time": when, "level": record.levelname, **self._about, "logger": record.name, "message": said}
            return json.dumps({**told, "trace": trace} if trace else told, ensure_ascii=False)
        words = " ".join(f"{name}={value}" for name, value in self._about.items())
        return f"{when} {record.levelname} {words} {said}" + (f"\n{trace}" if trace else "")
