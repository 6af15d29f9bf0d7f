"""The rules of the built-in ops, by family; importing this package registers them."""

from tilewright.passes.rules import arithmetic, axes, moves, sequence
from tilewright.passes.rules.record import RULES, OpRules, register_rules, rules_of

__all__ = ["RULES", "OpRules", "arithmetic", "axes", "moves", "register_rules", "rules_of", "sequence"]
