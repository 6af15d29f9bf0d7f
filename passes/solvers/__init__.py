"""Solvers, registered by being imported: pure mathematics on arrays, one module a family."""

from tilewright.passes.solvers import clip, finequant, gptq, hqq

__all__ = ["clip", "finequant", "gptq", "hqq"]
