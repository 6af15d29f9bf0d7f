"""Small modules in families: a family per file, each case a function and what makes its inputs of a type."""

from tests.compiler.small_modules import (
    activations,
    backward,
    compare,
    functions,
    indexing,
    moves,
    norms,
    pairs,
    pooling,
    products,
    recurrent,
    reductions,
    scans,
    sizes,
)
from tests.compiler.small_modules.base import Case

#: title of a family -> its cases by name; a name begins with the operator that the case is about
FAMILIES: dict[str, dict[str, Case]] = {
    "Functions of one operand": functions.CASES,
    "Activations": activations.CASES,
    "Two operands": pairs.CASES,
    "Comparison, logic, choice and casts": compare.CASES,
    "Reductions": reductions.CASES,
    "Running sums and order": scans.CASES,
    "Shapes, joins and padding": moves.CASES,
    "Indexing and scatter": indexing.CASES,
    "Products": products.CASES,
    "Recurrent layers": recurrent.CASES,
    "Norms and losses": norms.CASES,
    "Pooling and interpolation": pooling.CASES,
    "Gradients": backward.CASES,
    "Sizes of 0 and 1": sizes.CASES,
}
