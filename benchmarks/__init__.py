"""Measurements of quality, speed and attacks. No other package imports them."""

import fedmoe  # noqa: F401  # our packages before a user's modules of the same name
