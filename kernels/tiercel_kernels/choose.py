"""choose_ops: which implementation of the ops a device gets, decided once, with the reason."""

import importlib.util
import logging
from dataclasses import fields
from importlib import import_module
from typing import Any

import torch

from tiercel_kernels.ops import Ops

MINIMUM_CAPABILITY = (7, 5)

_log = logging.getLogger(__name__)


class DeviceTooOld(RuntimeError):
    """The GPU's compute capability is below 7.5."""


def choose_ops(device: torch.device) -> Ops:
    """The Triton kernels on a CUDA device, the torch reference elsewhere or without triton.

    Logs one line that says which and why. Raises DeviceTooOld below compute capability 7.5.
    """
    ops = _choose(device)
    _log.info("kernels on %s: %s, because %s", device, ops.name, ops.reason)
    return ops


def _choose(device: torch.device) -> Ops:
    if device.type != "cuda":
        return reference_ops(f"the device is a {device.type} and Triton's kernels are for CUDA")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < MINIMUM_CAPABILITY:
        raise DeviceTooOld(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}; "
            f"the least that works is 7.5 (Turing: T4, RTX 20)"
        )
    if importlib.util.find_spec("triton") is None:
        return reference_ops("triton is not installed; `pip install tiercel[cuda]` brings it")
    name = torch.cuda.get_device_name(device)
    return fused_ops(f"{name} has compute capability {major}.{minor} and triton is installed")


def reference_ops(reason: str = "it was asked for") -> Ops:
    """The specification in torch, on any device."""
    return _load("reference", reason)


def fused_ops(reason: str = "it was asked for") -> Ops:
    """The Triton kernels. Raises ImportError without triton."""
    return _load("fused", reason)


def _load(package: str, reason: str) -> Ops:
    """Each op is a function in a module of its own name."""
    names = [field.name for field in fields(Ops) if field.name not in ("name", "reason")]
    found: dict[str, Any] = {
        name: getattr(import_module(f"tiercel_kernels.{package}.{name}"), name) for name in names
    }
    return Ops(name=package, reason=reason, **found)
