"""A GPU simulated on the CPU: its tensors say they are on ``cuda:0``, compute on the CPU, and
refuse what CUDA refuses: operands on two devices, and ``numpy()``. Every operation that would make
the CPU wait for the GPU is recorded. It shows no races, no rounding and no speed of a GPU.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from interp.model import model_check
from interp.training import prefetch

GPU = torch.device("cuda:0")
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
"""Operations whose result, or whose size, the CPU must know."""


class OnGpu(Tensor):
    """A tensor on the simulated GPU; ``held`` has its values."""

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "OnGpu":
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            requires_grad=requires_grad,
        )

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None:
        self.held = held

    device, is_cuda, is_cpu = GPU, True, False

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    def numpy(self, **_: object) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        _check_devices(name, args, kwargs)
        if name in _WAITS:
            _record(name)
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func._schema.is_mutable:
            return _mutated(func, args, kwargs, out)
        return tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, out)


def _mutated(func: Any, args: tuple, kwargs: dict, out: object) -> object:
    """What an operation in place returns: the tensors that it changed."""
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, OnGpu) and x.shape != x.held.shape:
            raise NotImplementedError(f"{func} changes a shape in place")
    written = [
        kwargs[of.name] if of.name in kwargs else args[i]
        for i, of in enumerate(func._schema.arguments)
        if of.alias_info is not None and of.alias_info.is_write
    ]
    return None if out is None else written[0]


def _check_devices(name: str, args: tuple, kwargs: dict) -> None:
    """Raises a RuntimeError where CUDA would: operands with axes must be on one device."""
    if name == "copy_":
        if not isinstance(args[0], OnGpu):
            _record("copy_ to the CPU")
        return
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [isinstance(x, OnGpu) for x in tensors]
    if name in ("index", "index_put", "index_put_") and isinstance(args[0], OnGpu):
        of_index = [x for x in args[1] if x is not None]
        if not all(isinstance(x, OnGpu) for x in of_index):
            _record(f"{name} by a tensor on the CPU")
        if any(x.dtype == torch.bool for x in of_index):
            _record(f"{name} by a mask")
        return
    if any(there) and not all(x or t.ndim == 0 for x, t in zip(there, tensors)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def _held(x: object) -> object:
    return x.held if isinstance(x, OnGpu) else x


waits: list[str] = []
"""Operations that made the CPU wait for the GPU, with the line of ``interp`` that asked."""


def _record(what: str) -> None:
    frame = sys._getframe()
    while frame is not None and "/interp/" not in frame.f_code.co_filename:
        frame = frame.f_back
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "test"
    waits.append(f"{what} at {where}")


class _Moves(TorchFunctionMode):
    """Takes the place of everything that makes or moves a tensor by the name of a device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if name in ("cpu", "cuda", "to"):
            return _moved(func, name, args, kwargs)
        if name == "tolist" and isinstance(args[0], OnGpu):
            _record("tolist")
            return args[0].held.tolist()
        if name == "repeat_interleave" and isinstance(args[-1], OnGpu) and len(kwargs) == 0:
            _record("repeat_interleave without output_size")
        if (device := kwargs.get("device")) is not None and _is_gpu(device):
            if args and isinstance(args[0], OnGpu):
                return func(*args, **kwargs | {"device": None})
            made = func(*args, **kwargs | {"device": "cpu", "requires_grad": False})
            return OnGpu(made, kwargs.get("requires_grad", False))
        return func(*args, **kwargs)


def _moved(func: Any, name: str, args: tuple, kwargs: dict) -> Tensor:
    """A tensor on the device that ``to``, ``cpu`` or ``cuda`` asks for."""
    x, *rest = args
    to_gpu = isinstance(x, OnGpu)
    for given in (*rest, *kwargs.values()):
        if isinstance(given, (str, torch.device)):
            to_gpu = _is_gpu(given)
        elif isinstance(given, Tensor):
            to_gpu = isinstance(given, OnGpu)
    to_gpu = {"cpu": False, "cuda": True}.get(name, to_gpu)
    dtypes = [y for y in (*rest, *kwargs.values()) if isinstance(y, torch.dtype)]
    dtypes += [y.dtype for y in rest if isinstance(y, Tensor)]
    if isinstance(x, OnGpu) == to_gpu:
        return x.to(dtypes[0]) if dtypes and dtypes[0] != x.dtype else x
    if not to_gpu:
        _record("copy to the CPU")
    elif not kwargs.get("non_blocking"):
        _record("copy to the GPU")
    return _Move.apply(x, to_gpu, dtypes[0] if dtypes else x.dtype)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, to_gpu: bool, dtype: torch.dtype) -> Tensor:
        ctx.before = isinstance(x, OnGpu), x.dtype
        held = _held(x.detach()).to(dtype)
        return OnGpu(held.clone()) if to_gpu else held.clone()

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor, None, None]:
        was_on_gpu, dtype = ctx.before
        held = _held(d_out).to(dtype)
        return OnGpu(held) if was_on_gpu else held, None, None


def _is_gpu(device: str | torch.device) -> bool:
    return str(device).startswith("cuda")


def _grouped(lists: list[list[Tensor]]) -> dict:
    """As torch groups tensors, which sees the CPU behind them."""
    (tensors,) = lists
    return {(tensors[0].device, tensors[0].dtype): (lists, list(range(len(tensors))))}


@contextmanager
def simulated_gpu(memory: float = 8e9) -> Iterator[list[str]]:
    """Makes ``cuda`` the simulated GPU, with ``memory`` bytes; gives the list of waits."""
    properties = SimpleNamespace(
        total_memory=int(memory), name="simulated", multi_processor_count=6
    )
    with pytest.MonkeyPatch.context() as patched, _Moves():
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        patched.setattr(torch.cuda, "get_device_name", lambda device=None: properties.name)
        patched.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patched.setattr(torch.cuda, "mem_get_info", lambda device=None: (int(memory),) * 2)
        patched.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
        patched.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
        of_cpu = partial(torch.autocast, "cpu")
        patched.setattr(torch, "autocast", lambda kind, *given, **how: of_cpu(*given, **how))
        patched.setattr(clip_grad, "_group_tensors_by_device_and_dtype", _grouped)
        # a thread has function modes of its own
        in_mode = partial(ThreadPoolExecutor, initializer=_Moves().__enter__)
        patched.setattr(prefetch, "ThreadPoolExecutor", in_mode)
        patched.setattr(model_check, "_check_part", lambda *_: None)  # weights are of class OnGpu
        # torch can't make views of a subclass's tensors in inference mode
        patched.setattr(torch._C, "_InferenceMode", lambda mode: torch.set_grad_enabled(not mode))
        patched.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        waits.clear()
        yield waits
