"""A client as programs of a machine."""
