"""The user's function that makes the module, and whether this machine may call it.

A declared space names a function, and a space may come from another machine: a device reads it in
the server's messages. To import what a stranger names is to run what he chooses. So nothing is
imported that this machine's own environment does not list in FEDOFA_MODULES: functions
(`mypackage.net:build`), or modules and packages with all functions that they define (`mypackage`).
Whatever is listed may be called with any arguments.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..torchvision_import import import_module
from .declared_graph import WHERE
from .declared_layers import check_tensors

TRUST = "FEDOFA_MODULES"
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


def made(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that the function `module:function` returns for these keyword arguments.

    Made on the current default device. UsageError when it is not trusted, cannot be imported,
    raises, or returns something else, or a module with tensors that subnets could not get.
    """
    check_trusted(name)
    build = _function(name)
    try:
        module = _called(build, arguments)
    except Exception as error:
        raise UsageError(f"{WHERE}: {name} called with {dict(arguments)}: {said(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{WHERE}: {name} returned {type(module).__name__}; an nn.Module expected")
    check_tensors(module)  # before the next line, which parts tied weights
    return module.to(torch.get_default_device())


def _called(build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if torch.get_default_device().type != "meta":
        return build(**arguments)
    try:
        return build(**arguments)
    except (NotImplementedError, RuntimeError):
        # It computes with tensors' values on its way, and a tensor without memory has none.
        with torch.device("cpu"):
            return build(**arguments)


def check_trusted(name: str) -> None:
    """UsageError when this machine's environment does not list a function, or its module."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{WHERE}: module = {name!r}; expected the form mypackage.net:build")
    trusted = _trusted()
    if name not in trusted and not _inside(name.partition(":")[0], trusted):
        raise UsageError(
            f"{WHERE}: module = {name!r} is not trusted on this machine; trusted: "
            f"{', '.join(trusted) or 'none'}. If you trust it, set {TRUST}={name}"
        )


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise UsageError(f"{WHERE}: {module} cannot be imported: {said(error)}") from error
    if not callable(found):
        raise UsageError(f"{WHERE}: {module} has no function {attribute!r}")
    # A trusted module's names include what it imported itself: that was not meant.
    home, trusted = str(getattr(found, "__module__", "")), _trusted()
    if name not in trusted and not _inside(home, trusted):
        raise UsageError(
            f"{WHERE}: {name} is defined in {home}, which is not trusted on this machine. "
            f"If you trust it, set {TRUST}={name}"
        )
    function: Callable[..., Any] = found
    return function


def said(error: Exception) -> str:
    """An exception of the user's code in one line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _trusted() -> list[str]:
    return os.environ.get(TRUST, "").replace(",", " ").split()


def _inside(module: str, trusted: list[str]) -> bool:
    return any(module == entry or module.startswith(f"{entry}.") for entry in trusted)
