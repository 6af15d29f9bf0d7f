"""The verifier of Tile IR: raises a VerifyError whose message starts with the number of the violated rule.

 1. Names are words and not reserved; buffer names are unique; axes, loop variables, sizes and symbols do not
    share a name.
 2. Every value is defined once.
 3. Every value is used after its definition and inside the loop that defines it.
 4. Operations are known and have exactly the operands and attributes (sorted by key) that they take.
 5. Every type is the one that the operation, or the index of a load, determines.
 6. Loads and stores name a buffer or a stream, with one index per dimension; tile indices are integers.
 7. Names in indices, bounds, extents and dimensions are in scope.
 8. A stored value has the buffer's dtype and broadcasts to the index's tile.
 9. A carried value keeps its type, from the initial value to the yielded one.
10. A local is written by one statement, which precedes every statement that reads it.
11. Every schedule binds exactly the sizes that the kernel uses, to at least 1; a `rows` axis steps by a size.
12. Schedules name existing axes, values and loops; a staged value depends on nothing that the kernel writes
    or that is defined inside the stage's axis.
13. `within` names an enclosing loop, along an axis as long as the loop's step.
14. No instance of the grid accesses what another one writes, unless the kernel's author declares the store
    disjoint.
15. Reads of packed buffers stay inside their padding under every schedule.
16. Indices, bounds, extents and dimensions are integers under every schedule.
17. No tile has more than 2^20 elements, no buffer more than 2^48 bytes; no index or bound reaches 2^62.
18. Records and value ranges are well-formed.
19. Floats are not summed along an axis whose length a schedule chooses: the order of summation is part of the
    kernel.
20. Every element of a local that a load may read has been stored before by the same instance, for all values
    of the symbols and of the data.

Must not depend on targets. Rules of names and buffers are checked in `tile.declarations`, those of statements
in `tile.statement_checks`, those of schedules in `tile.schedule_checks` and `tile.stages`, rule 14 in
`tile.races`, rules 15 to 17 in `tile.bounds`, rule 20 in `tile.locals`.
"""

from __future__ import annotations

from tilewright.ir.tile.bounds import check_bounds
from tilewright.ir.tile.core import Kernel
from tilewright.ir.tile.declarations import check_declarations
from tilewright.ir.tile.locals import check_locals
from tilewright.ir.tile.races import check_races
from tilewright.ir.tile.schedule_checks import check_schedule
from tilewright.ir.tile.scope import Scope, used_sizes
from tilewright.ir.tile.statement_checks import check_statements


def verify_kernel(kernel: Kernel) -> None:
    """Raises VerifyError naming the first rule that is violated."""
    scope = Scope(kernel)
    check_declarations(scope)
    check_statements(scope)
    for s in kernel.schedules:
        check_schedule(scope, s)
    unbound = bool(used_sizes(kernel))
    for sizes in [dict(s.sizes) for s in kernel.schedules] or ([] if unbound else [{}]):
        check_bounds(kernel, sizes)
        check_races(kernel, sizes)
        check_locals(kernel, sizes)
