"""Benchmarks: speed and memory against the best known peers."""
