"""Write small networks to files that need no pickle, and read them back."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsdist.compaction.plan import Plan
from gsdist.compaction.surgery import cut_channels
from gsdist.compaction.trace import trace_channels
from gsdist.errors import CheckpointError, UnsupportedSetup

__all__ = ["MANIFEST", "WEIGHTS", "export_onnx", "export_program", "load_compact", "save_compact"]

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
_FORMAT = 1


def save_compact(
    folder: Path, model: nn.Module, plan: Plan, *, architecture: Mapping[str, Any]
) -> None:
    """Write the weights of a compact network, and a manifest with how it came about.

    Args:
        folder: made if it is not there.
        model: what `cut_channels` returned.
        plan: that it was cut by.
        architecture: what the whole network is built from, as JSON knows it.

    Raises:
        UnsupportedSetup: the package safetensors is not installed.
    """
    save_file = _safetensors("save_file")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    manifest = {"format": _FORMAT, "architecture": dict(architecture), "plan": plan.to_mapping()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def load_compact(
    folder: Path,
    build: Callable[[Mapping[str, Any]], nn.Module],
    example: tuple[Any, ...],
) -> nn.Module:
    """Read what `save_compact` wrote.

    Args:
        folder: with manifest and weights.
        build: makes the whole network from the manifest's architecture, with any weights.
        example: arguments of a call of it.

    Raises:
        CheckpointError: a file is missing or is none of ours, or does not fit the network.
        ConfigError: the plan is of another network.
        UnsupportedSetup: the package safetensors is not installed.
    """
    load_file = _safetensors("load_file")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {_FORMAT}")
        plan, architecture = Plan.from_mapping(manifest["plan"]), manifest["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no compact network: {error}") from error
    whole = build(architecture)
    compact = cut_channels(whole, trace_channels(whole, example), plan).model
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        compact.load_state_dict(tensors)
    except Exception as error:  # safetensors has errors of its own
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its manifest: {error}") from error
    return compact


def export_program(model: nn.Module, example: tuple[Any, ...], path: Path) -> None:
    """Write the network, in evaluation mode, by torch.export, for any batch size."""
    program = torch.export.export(model.eval(), example, dynamic_shapes=_any_batch(example))
    torch.export.save(program, path)


def export_onnx(model: nn.Module, example: tuple[Any, ...], path: Path) -> None:
    """Write the network, in evaluation mode, in ONNX, for any batch size.

    Raises:
        UnsupportedSetup: the packages onnx and onnxscript are not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UnsupportedSetup(
            "ONNX needs the packages onnx and onnxscript; pip install 'gsdist[onnx]'"
        ) from error
    torch.onnx.export(
        model.eval(),
        example,
        str(path),
        dynamo=True,
        external_data=False,
        dynamic_shapes=_any_batch(example),
        verbose=False,
    )


def _any_batch(example: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple({0: torch.export.Dim("batch")} if isinstance(v, Tensor) else None for v in example)


def _safetensors(name: str) -> Callable[..., Any]:
    try:
        from safetensors import torch as safetensors
    except ImportError as error:
        raise UnsupportedSetup(
            "compact networks are saved by the package safetensors; pip install 'gsdist[prune]'"
        ) from error
    function: Callable[..., Any] = getattr(safetensors, name)
    return function
