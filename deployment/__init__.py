"""What server and clients have in common as programs of a machine: processes, folders, keys. Knows no Flower app."""
