"""What the studies in experiments/ share: runs that are optimized and kept, AdaIN's images, measures, and the card."""
