"""Measurements that are no training: an accelerator, gradients, sizes of files."""
