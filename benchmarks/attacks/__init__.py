"""What bad clients and curious servers do, and what defences do about it."""
