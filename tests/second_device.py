"""A second device where there is none, to see on any machine whether the code keeps its tensors together.

Inside `with second_device():` "cuda" is a place of its own. A tensor that is sent there becomes a `Far`: it keeps its
numbers on the CPU, says that it lives on cuda:0, and refuses to meet a tensor that does not, as on a GPU. Everything is
computed, so whole trainings run. It stands in for a GPU that cannot be had, and knows nothing of kernels, streams or
half precision; `test_gpu.py` asks a real one.
"""
import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MEETS = {aten.copy_.default, aten._to_copy.default}   # may look at both places
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Far(torch.Tensor):
    "A tensor on cuda:0, as far as Python can tell; PyTorch's own code takes it for one on `meta`, which has no numbers."
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(cls, near.size(), strides=near.stride(), dtype=near.dtype, device="meta",
                                                   storage_offset=near.storage_offset())

    def __init__(self, near): self.near = near.detach()

    @property
    def device(self): return torch.device("cuda:0")

    def __repr__(self): return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _compute(func, args, kwargs or {})


def _near(value): return value.near if isinstance(value, Far) else value


def _compute(func, args, kwargs):
    "Do on the CPU what was asked for, and put the result where a GPU would have it."
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
    there = [v for v in tensors if isinstance(v, Far)]
    here = [v for v in tensors if not isinstance(v, Far) and v.dim()]   # a single number may be anywhere
    far_table = func in INDEXED and isinstance(args[0], Far)            # takes row numbers from anywhere, but no values
    if far_table: here = [v for v in args[2:3] if not isinstance(v, Far) and v.dim()]
    if here and there and func not in MEETS:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
    device, kwargs = kwargs.get("device"), dict(kwargs)
    if device is not None: kwargs["device"] = torch.device("cpu")
    result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    if func is aten.copy_.default: return args[0]
    if device.type == "cpu" if device is not None else not there: return result
    known = {id(v.near): v for v in there}   # what was changed in place stays the same object
    def placed(v): return known[id(v)] if id(v) in known else Far(v) if isinstance(v, torch.Tensor) else v
    return tree_map(placed, result)


class _Operations(TorchDispatchMode):
    "What PyTorch's own code makes beside a `Far`, as in the backward pass, is one, too."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made_there = kwargs.get("device") is not None and kwargs["device"].type == "meta"
        far = made_there or any(isinstance(v, Far) for v in tree_leaves((args, kwargs)))
        return _compute(func, args, kwargs) if far else func(*args, **kwargs)


def _is_cuda(value): return isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda"


class _Calls(TorchFunctionMode):
    "What is said in Python, before PyTorch looks for the device that it names."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, first = dict(kwargs or {}), args[0] if args else None
        if func is torch.Tensor.to:
            said = (*args[1:], *kwargs.values())
            if any(map(_is_cuda, said)) and isinstance(first, Far):   # it is there already
                kinds = [v for v in said if isinstance(v, torch.dtype)]
                return func(first, *kinds) if kinds else first
            args, kwargs = tree_map(lambda v: "meta" if _is_cuda(v) else v, (args, kwargs))
            return func(*args, **kwargs)
        if isinstance(first, Far):
            if func == torch.Tensor.data.__set__: return setattr(first, "near", args[1].near)
            if func == torch.Tensor.data.__get__: return Far(first.near)
            if func is torch.Tensor.tolist: return first.near.tolist()
            if func is torch.Tensor.__deepcopy__:
                copy = Far(first.near.clone())
                return torch.nn.Parameter(copy, first.requires_grad) if isinstance(first, torch.nn.Parameter) else copy
        if _is_cuda(kwargs.get("device")): return Far(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"): return super().__new__(cls, "cpu")


@contextlib.contextmanager
def second_device():
    "Inside, there is a cuda:0."
    stand_ins = {"torch.cuda.is_available": lambda: True, "torch.cuda.device_count": lambda: 1,
                 "torch.cuda.mem_get_info": lambda device=None: (2**37, 2**37), "torch.Generator": _Generator,
                 "torch.accelerator.current_stream": lambda device=None: mock.Mock(is_capturing=lambda: False),
                 "torch.autocast": lambda *given, **more: contextlib.nullcontext()}
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)   # a Far does not fit into a parameter on the CPU
    try:
        with contextlib.ExitStack() as stack:
            for name, stand_in in stand_ins.items(): stack.enter_context(mock.patch(name, stand_in))
            for mode in (_Operations(), _Calls()): stack.enter_context(mode)
            yield
    finally: torch.__future__.set_overwrite_module_params_on_conversion(before)
