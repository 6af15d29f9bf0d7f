"""The question of whoever partitions a graph: does a target compute this op on these types, and if not, why?

In: an op's name, types of its operands, attributes, the words of `--target`. Out: `Support`. The lowering
says whether there is a kernel, the backend whether it can render it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.backends.base import Support
from tilewright.backends.registry import chosen
from tilewright.ir.types import TensorType
from tilewright.passes.lower import lower
from tilewright.passes.lower.legality import module_of_op
from tilewright.passes.lower.legality import supports as lowering_supports


def supports(
    op: str, types: Sequence[TensorType], attrs: Mapping[str, object] | None = None, target: str = "native"
) -> Support:
    """True, or false with the reason. `op`: a name of Graph IR (`linear`); `types`: of its operands, all in
    memory. Raises UnknownTargetError."""
    backend, targets = chosen(target)
    if why := lowering_supports(op, types, attrs):
        return Support(why)
    module = module_of_op(op, types, attrs)
    assert not isinstance(module, str)
    answers = (backend.supports(k, t) for k in lower(module, backends=[backend]).kernels for t in targets)
    return next((a for a in answers if not a), Support())
