"""Offer the distillation workloads: students of a trained teacher, teachers, and peers."""

from gsdist.workloads.distillation.detection_transfer import (
    DetectionTransferConfig,
    DetectionTransferWorkload,
)
from gsdist.workloads.distillation.dist import DistConfig, DistWorkload
from gsdist.workloads.distillation.dkd import DkdConfig, DkdWorkload
from gsdist.workloads.distillation.hsakd_student import HsakdStudentConfig, HsakdStudentWorkload
from gsdist.workloads.distillation.hsakd_teacher import HsakdTeacherConfig, HsakdTeacherWorkload
from gsdist.workloads.distillation.hssakd_online import HssakdOnlineConfig, HssakdOnlineWorkload
from gsdist.workloads.distillation.kd import KdConfig, KdWorkload
from gsdist.workloads.distillation.linear_transfer import (
    LinearTransferConfig,
    LinearTransferWorkload,
)
from gsdist.workloads.distillation.mcl import MclConfig, MclWorkload
from gsdist.workloads.distillation.mcl_memory_bank import (
    MclMemoryBankConfig,
    MclMemoryBankWorkload,
)
from gsdist.workloads.distillation.mcl_moco import MclMocoConfig, MclMocoWorkload

__all__ = [
    "DetectionTransferConfig",
    "DetectionTransferWorkload",
    "DistConfig",
    "DistWorkload",
    "DkdConfig",
    "DkdWorkload",
    "HsakdStudentConfig",
    "HsakdStudentWorkload",
    "HsakdTeacherConfig",
    "HsakdTeacherWorkload",
    "HssakdOnlineConfig",
    "HssakdOnlineWorkload",
    "KdConfig",
    "KdWorkload",
    "LinearTransferConfig",
    "LinearTransferWorkload",
    "MclConfig",
    "MclMemoryBankConfig",
    "MclMemoryBankWorkload",
    "MclMocoConfig",
    "MclMocoWorkload",
    "MclWorkload",
]
