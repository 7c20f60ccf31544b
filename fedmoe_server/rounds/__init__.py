"""The round loop, what it exchanges with the clients, and what it leaves behind."""
