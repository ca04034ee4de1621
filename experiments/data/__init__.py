"""What examples are read from, and how they become batches."""
