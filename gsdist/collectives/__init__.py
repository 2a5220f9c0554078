"""Collect what torch.distributed lacks."""

from gsdist.collectives.agreement import gather_json, require_agreement, share_faults
from gsdist.collectives.all_reduce import all_reduce_sum, start_all_reduce_sum

__all__ = [
    "all_reduce_sum",
    "gather_json",
    "require_agreement",
    "share_faults",
    "start_all_reduce_sum",
]
