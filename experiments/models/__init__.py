"""Networks in Flax NNX."""
