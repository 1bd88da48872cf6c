"""How ecosystems arrange packed weights, a module for each; those that there are, in `catalogue`, are loaded when asked for."""

from typing import TYPE_CHECKING

from qformat.deferred import homes

if TYPE_CHECKING:
    from qconvert.dialects.catalogue import DIALECTS, check_assumed, claim_all, find
    from qconvert.dialects.dialect import Claim, Dialect, Shelf

__all__ = ["DIALECTS", "Claim", "Dialect", "Shelf", "check_assumed", "claim_all", "find"]

__getattr__ = homes(
    __name__, {"catalogue": ("DIALECTS", "check_assumed", "claim_all", "find"), "dialect": ("Claim", "Dialect", "Shelf")}
)
