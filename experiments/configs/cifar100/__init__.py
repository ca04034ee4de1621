"""A task that fills a small network: CIFAR-100."""
