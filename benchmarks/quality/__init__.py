"""Ranking quality: central and federated training, variants, personalisation and strategies."""
