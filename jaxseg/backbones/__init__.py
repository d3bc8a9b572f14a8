"""Backbones: images to a dict of features, by name and by stride."""
