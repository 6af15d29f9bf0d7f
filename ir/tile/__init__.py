"""Tile IR: kernels, their operations and builder, and the proofs that verifiers make about them."""
