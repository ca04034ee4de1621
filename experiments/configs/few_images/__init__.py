"""ImageNet networks compressed with 700 images."""
