"""Tell the server that a node has crashed, so that its round does not wait for it.

A node that ends in good order says so itself. After a crash the server would believe for a minute that the node is
there, wait for its answer all that time, and refuse it when it comes back. This is the one module of the client that
uses private names of Flower (1.39).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.grpc import create_channel
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor

SECONDS = 10.0


def release(server: str, authority: Path, key: Path, node: int) -> bool:
    """Take a node off the server's list until it connects again; return whether the server did so."""
    private = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)  # as made by ``fedmoe.deployment.keys``
    channel = create_channel(
        server_address=server,
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[
            RuntimeVersionClientInterceptor(component_name="SuperNode"),
            NodeAuthClientInterceptor(private, private.public_key()),
        ],
    )
    try:
        FleetStub(channel).DeactivateNode(DeactivateNodeRequest(node_id=node), timeout=SECONDS)
    except grpc.RpcError:  # the server is away, or knows already
        return False
    finally:
        channel.close()
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m fedmoe_client.device.release", description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    given = parser.parse_args()
    sys.exit(0 if release(given.server, given.ca, given.key, given.node) else 1)
