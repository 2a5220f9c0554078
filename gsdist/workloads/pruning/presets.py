"""Give the settings of the published methods by name."""

from types import MappingProxyType

from gsdist.workloads.pruning.config import PruningConfig

__all__ = ["PRESETS"]

_ONE_SHOT = {"hard_share": 1.0, "select_once": True, "mask_at_begin": True}

PRESETS = MappingProxyType(
    {
        "sfp": PruningConfig(),
        "asfp": PruningConfig(rate_schedule="exponential"),
        "srfp": PruningConfig(softness=1.0),
        "asrfp": PruningConfig(rate_schedule="exponential", softness=1.0),
        "hfp": PruningConfig(hard_share=1.0),
        "ghfp": PruningConfig(
            rate_schedule="exponential",
            softness=1.0,
            hard_share=1.0,
            hard_schedule="cubic",
        ),
        "fpgm": PruningConfig(criterion="fpgm", hard_share=1.0),
        "l1": PruningConfig(criterion="l1", **_ONE_SHOT),  # type: ignore[arg-type]
        "slimming": PruningConfig(
            criterion="scale",
            scope="global",
            layout="internal",
            sparsity=1e-4,
            hard_share=1.0,
            select_once=True,
            select_at=0.5,
        ),
        "cpmc": PruningConfig(
            criterion="cpmc",
            scope="global",
            layout="internal",
            **_ONE_SHOT,  # type: ignore[arg-type]
        ),
        "pfgdf": PruningConfig(
            criterion="gaussian",
            scope="global",
            layout="internal",
            **_ONE_SHOT,  # type: ignore[arg-type]
        ),
    }
)
"""Settings by name. GHFP stands on ASRFP; options give it another base. SRFP and ASRFP prune single weights
with granularity="weight". CPMC and PFGDF are reconstructed."""
