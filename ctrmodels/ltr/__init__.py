"""Learning to rank: losses of whole lists on flat rows."""

from ctrmodels.ltr.lists import Lists, Pairs
from ctrmodels.ltr.losses import bpr, jrc, lambdarank, list_mle, listnet

__all__ = ["Lists", "Pairs", "bpr", "jrc", "lambdarank", "list_mle", "listnet"]
