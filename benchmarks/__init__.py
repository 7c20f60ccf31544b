"""Measurements: quality against central training and popularity, and speed. Nothing of the product imports them."""
