"""The Flower ClientApp: one user, who trains on its own history and keeps what is private."""

import fedmoe  # noqa: F401  # our packages before a user's modules of the same name
