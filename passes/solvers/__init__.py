"""Solvers, registered by being imported: pure mathematics on arrays, one module a family."""

from tilewright.passes.solvers import clip, equalize, finequant, gptq, hqq, lsq, spqr

__all__ = ["clip", "equalize", "finequant", "gptq", "hqq", "lsq", "spqr"]
