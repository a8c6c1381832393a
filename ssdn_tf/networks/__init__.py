"""Blind-spot networks: layers that never see their own pixel, and the networks made of them."""
