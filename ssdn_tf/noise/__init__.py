"""Noise models: what a clean colour becomes, how likely a noisy one is, what is left of the noise."""
