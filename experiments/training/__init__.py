"""Training and fine-tuning of one experiment."""
