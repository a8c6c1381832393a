"""Noise models: how a clean colour becomes noisy, how likely a noisy one is, and what it says about the clean one.

How to add a noise model: see `noise.registry`.
"""
