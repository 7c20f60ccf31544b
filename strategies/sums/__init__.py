"""Rounds in which the server sees nothing of single clients but an exact sum of integers (``privacy.sum_bits``)."""
