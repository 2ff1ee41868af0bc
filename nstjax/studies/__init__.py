"""What the studies in experiments/ share: the runner of many optimizations, AdaIN's images, measures, and the card."""
