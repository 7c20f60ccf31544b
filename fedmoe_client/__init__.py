"""The Flower ClientApp: one user, who trains on its own history and keeps what is private."""
