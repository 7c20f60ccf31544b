"""Put on a node's PYTHONPATH: writes down every object that the node sends to the server, as it goes into gRPC."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

if os.environ.get("WIRETAP") and any(word.endswith("flower-supernode") for word in sys.orig_argv):
    from flwr.proto import fleet_pb2_grpc

    tap = Path(os.environ["WIRETAP"])
    numbers = itertools.count()  # objects are sent by several threads at once
    connect = fleet_pb2_grpc.FleetStub.__init__

    def connect_and_tap(stub: Any, channel: Any) -> None:
        connect(stub, channel)
        for name in ("PushMessages", "PushObject"):
            setattr(stub, name, tapped(name, getattr(stub, name)))

    def tapped(name: str, call: Any) -> Any:
        def send(request: Any, *words: Any, **options: Any) -> Any:
            content = request.object_content if name == "PushObject" else request.SerializeToString()
            (tap / f"{next(numbers):06d}.{name}").write_bytes(content)
            return call(request, *words, **options)

        return send

    fleet_pb2_grpc.FleetStub.__init__ = connect_and_tap
