"""Artifacts: the libraries, the packed weights and the manifest of `model.tw`, written and rebuilt."""
