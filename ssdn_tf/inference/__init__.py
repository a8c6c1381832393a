"""Trained models at work: loading, tiles, published network files."""
