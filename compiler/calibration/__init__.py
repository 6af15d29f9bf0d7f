"""Calibration: a captured graph run on samples, and its weights solved from what they see."""
