"""A small DeiT on CIFAR-10: all methods, alike."""
