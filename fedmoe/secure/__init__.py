"""Secure aggregation: the server learns the sum of the clients' vectors and no single one. Needs no Flower, no torch.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", against a server that may
lie, with the sparse graph of Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead".
``client.SecureClient`` and ``server.SecureSum`` are the two sides; ``messages`` is what they say to each other.
"""
