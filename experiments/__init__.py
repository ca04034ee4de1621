"""Experiments with ssvq_jax: data, models, scripts and their results."""
