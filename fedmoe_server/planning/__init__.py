"""What a simulated run will do and cost, before it begins: defaults that follow from its size, and a plan."""
