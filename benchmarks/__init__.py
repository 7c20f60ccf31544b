"""Measurements: quality against central training and popularity, and speed. Nothing of the product imports them."""

import fedmoe  # noqa: F401  # our packages before a user's modules of the same name
