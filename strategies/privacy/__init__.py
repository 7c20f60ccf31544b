"""Differential privacy: the rule and its accountant."""
