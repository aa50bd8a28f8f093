"""Training: the bilevel search, fixed networks, checkpoints and the loop they share."""
