"""Weights: where their numbers come from, the transforms on the way, and how they are packed."""
