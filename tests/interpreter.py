"""Triton's interpreter without the work that it does and throws away: over half of its time in our kernels.

What kernels compute is the same to the bit, and what the interpreter refuses, it refuses as before. But NaN stays NaN
to and from e4m3, as on a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch


def quicken(interpreter: Any) -> None:
    """Take the work out of `triton.runtime.interpreter`; of a version that has it elsewhere, nothing changes."""
    if all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "interpreter_builder")):
        _name_the_language_once(interpreter)
        _leave_out_overflow_checks(interpreter.interpreter_builder)
        _convert_e4m3_by_torch(interpreter)
        _make_types_once(interpreter)


def _leave_out_overflow_checks(builder: Any) -> None:
    """Each sum and product of integers is computed again in 64 bits, for an assertion that only debugging makes."""
    if hasattr(builder.options, "sanitize_overflow") and not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _convert_e4m3_by_torch(interpreter: Any) -> None:
    """The interpreter has NaN become a number and drops a carry; torch does neither, and is quicker."""
    builder, e4m3, fp32 = interpreter.interpreter_builder, interpreter.tl.float8e4nv, interpreter.tl.float32
    convert = builder.create_fp_to_fp

    def create_fp_to_fp(source: Any, target_type: Any, rounding: Any) -> Any:
        kinds = source.dtype.scalar, target_type.scalar
        if kinds == (e4m3, fp32):
            data = torch.from_numpy(source.data.view("uint8")).view(torch.float8_e4m3fn).float().numpy()
        elif kinds == (fp32, e4m3):
            data = torch.from_numpy(source.data.view("float32")).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        else:
            return convert(source, target_type, rounding)
        return interpreter.TensorHandle(data, target_type.scalar)

    builder.create_fp_to_fp = create_fp_to_fp


def _name_the_language_once(interpreter: Any) -> None:
    """A launch replaces the names in `triton.language`; each function that a kernel calls would do so again.

    The first replacement of a launch stands until it ends. A function that sees another module of the language replaces
    the names of that one.
    """
    replace: Callable[[Any], Any] = interpreter._patch_lang
    replaced = set[frozenset[str]]()

    @functools.cache
    def modules(function: Any) -> frozenset[str]:
        languages = (interpreter.tl, interpreter.tl.core)
        return frozenset(x.__name__ for x in function.__globals__.values() if any(x is y for y in languages))

    class Scope:
        def __init__(self, scope: Any) -> None:
            self._scope = scope

        def restore(self) -> None:
            replaced.clear()
            self._scope.restore()

    def replace_once(function: Any) -> Any:
        if modules(function) in replaced:
            return interpreter._LangPatchScope()
        scope = Scope(replace(function))
        replaced.add(modules(function))
        return scope

    interpreter._patch_lang = replace_once


def _make_types_once(interpreter: Any) -> None:
    """Each operation makes the types of its tensors anew, with their shapes, names and a table of numpy's dtypes."""
    numpy_dtype, core = interpreter._get_np_dtype, interpreter.tl.core
    make_block, make_tensor = core.block_type.__init__, core.tensor.__init__
    dtypes, blocks, tensors = dict[str, Any](), dict[Any, dict[str, Any]](), dict[Any, dict[str, Any]]()

    def get_np_dtype(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = numpy_dtype(tt_dtype)
        return dtypes[name]

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (getattr(element_ty, "name", None), *shape)
        if not all(type(size) is int for size in key[1:]):
            make_block(self, element_ty, shape)
            return
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = dict(self.__dict__)
        self.__dict__.update(blocks[key], element_ty=element_ty)

    def init_tensor(self: Any, handle: Any, type: Any) -> None:  # Triton names it so
        key = tuple(type.shape) if type.is_block() else ()
        if key not in tensors:
            make_tensor(self, handle, type)
            tensors[key] = {name: self.__dict__[name] for name in ("shape", "numel")}
        self.__dict__.update(tensors[key], handle=handle, type=type, dtype=type.scalar)

    interpreter._get_np_dtype = get_np_dtype
    core.block_type.__init__, core.tensor.__init__ = init_block, init_tensor
