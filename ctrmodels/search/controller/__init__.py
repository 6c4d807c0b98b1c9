"""Controllers: what to judge next, from what was judged so far."""

from ctrmodels.search.controller.nbtree_crp import Breeding, NBTreeCRP, Proposal

__all__ = ["Breeding", "NBTreeCRP", "Proposal"]
