"""What is learned: central and federated training, variants, personalisation and strategies."""
