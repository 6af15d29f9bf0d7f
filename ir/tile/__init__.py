"""Tile IR: how it is computed. Kernels, their operations and builder, and what is proved of them."""
