"""Graph IR to Tile IR: every fused region becomes one tile program (or a few), and the graph a plan of calls.

In: modules whose graphs *fuse* has numbered. Out: a `Program` with each distinct kernel once.
"""

from tilewright.passes.lower.program import lower

__all__ = ["lower"]
