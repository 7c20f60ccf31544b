"""Histories and item features: reading, splitting, sampling. Numpy only; knows neither Flower, Ray nor the model.

``registry.load_dataset`` is the front door. Inside the system items are ``1..num_items`` (0 is padding) and users are
``0..num_users-1``; a user's number is its client id.
"""
