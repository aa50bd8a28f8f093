"""TFDS builders of our own, one module per data set."""
