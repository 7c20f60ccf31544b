"""What the commands of server and client share: folders, keys, supervision."""
