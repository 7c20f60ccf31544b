"""The server side of FedMoE: the Flower ``ServerApp``, its round loop, checkpoints, run folder and report."""

import fedmoe  # noqa: F401  # our packages before a user's modules of the same name
