"""The table of a fit, its draws, and what they are worth. No sampler enters."""
