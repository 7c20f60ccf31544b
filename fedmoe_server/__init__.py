"""The server side of FedMoE: the Flower ``ServerApp``, its round loop, checkpoints, run folder and report."""
