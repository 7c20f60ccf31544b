"""What a round costs on each engine, beside central training and pfl-research."""
