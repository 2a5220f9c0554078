"""Share small networks with branches and a file of a teacher's weights."""

import pytest
import torch

from gsdist.workloads.distillation import HsakdTeacherConfig, HsakdTeacherWorkload

SMALL = {"data": "digits", "norm": "group", "augment": False}


@pytest.fixture(scope="session")
def branched_teacher(tmp_path_factory):
    """Return a file with the weights of a small teacher with branches."""
    torch.manual_seed(7)
    model = HsakdTeacherWorkload(HsakdTeacherConfig(model="resnet8-narrow", **SMALL)).build_model()
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(model.state_dict(), path)
    return path
