"""Fixed-size vectors for the CPU kernels, as an extension of numba.

A kernel works on blocks of `features x heads` numbers that lie side by side.
Their size is part of the type :class:`Lanes`, so that LLVM keeps a block in
vector registers, which it does not do for small arrays.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import (
    NativeValue,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
)

# Numba's own types say that the typing context is an argument of calls.
intrinsic: Any = extending.intrinsic


def _compile(function: Any, **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write the cache
        return numba.njit(**options)(function)


def kernel(function: Any) -> Any:
    """Compiles what is called from Python, without the interpreter's lock."""
    return _compile(function, nogil=True, _nrt=False)


def inlined(function: Any) -> Any:
    """Compiles what kernels are made of."""
    return numba.njit(function, forceinline=True, _nrt=False)


@dataclass(frozen=True)
class Lanes:
    """Size of a block; of a pixel's half window, zero if not a grid; and the
    number of entries that are asked for ahead of their use, zero if their
    numbers are near. Constants in kernels.

    They are the place, too, of a block that is a whole row, where a tuple
    holds the numbers of a row, the first of the block, the heads, and the
    first of these.
    """

    features: int
    heads: int
    window: int = 0
    ahead: int = 0

    @property
    def size(self) -> int:
        """Numbers of a block."""
        return self.features * self.heads

    def __getitem__(self, index: int) -> int:
        return (self.size, 0, self.heads, 0)[index]


class _LanesType(types.Type):
    def __init__(self, value: Lanes) -> None:
        self.value = value
        super().__init__(name=repr(value))


class _Vector(types.Type):
    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype, self.size = dtype, size
        super().__init__(name=f'Vector({dtype}, {size})')


_type_of = cache(_LanesType)
extending.typeof_impl.register(Lanes)(lambda value, _: _type_of(value))
register_model(_LanesType)(models.OpaqueModel)


@extending.unbox(_LanesType)
def _unbox(typ: Any, value: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


@infer_getattr
class _LanesAttribute(AttributeTemplate):  # type: ignore[misc]
    key = _LanesType

    def generic_resolve(self, lanes: Any, name: str) -> Any:
        return types.int64


@lower_getattr_generic(_LanesType)
def _attribute(
    context: Any, builder: Any, lanes: Any, value: Any, name: str
) -> Any:
    return context.get_constant(types.int64, getattr(lanes.value, name))


@infer
class _LanesItem(AbstractTemplate):  # type: ignore[misc]
    key = 'static_getitem'

    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], _LanesType):
            return signature(types.int64, *args)
        return None


@lower_builtin('static_getitem', _LanesType, types.IntegerLiteral)
def _item(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    lanes, index = signature.args[0].value, args[1]
    return context.get_constant(types.int64, lanes[index])


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.size))


def _pointer(
    context: Any, builder: Any, array_type: Any, array: Any, offset: Any
) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _align(instruction: Any, dtype: Any) -> Any:
    instruction.align = dtype.bitwidth // 8
    return instruction


def _shuffle(builder: Any, vector: Any, indices: list[int]) -> Any:
    index = ir.VectorType(ir.IntType(32), len(indices))
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(
        vector, undefined, ir.Constant(index, indices)
    )


@intrinsic
def another(typing_context, array, address):
    """The array of the type and size of another that begins at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = context.make_array(signature.args[0])(context, builder, args[0])
        out.data = builder.inttoptr(args[1], out.data.type)
        return out._getvalue()

    return array(array, types.int64), codegen


@intrinsic
def zeros(typing_context, array, lanes):
    """A block of zeros of an array's type."""
    vector = _Vector(array.dtype, lanes.value.size)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm_type = context.get_value_type(vector)
        return ir.Constant(llvm_type, [0.0] * vector.size)

    return vector(array, lanes), codegen


def _loader(size: Callable[[Lanes], int]) -> Any:
    def load(typing_context, array, offset, lanes):
        vector = _Vector(array.dtype, size(lanes.value))

        def codegen(
            context: Any, builder: Any, signature: Any, args: Any
        ) -> Any:
            pointer = _pointer(context, builder, signature.args[0], *args[:2])
            llvm_type = context.get_value_type(vector).as_pointer()
            block = builder.load(builder.bitcast(pointer, llvm_type))
            return _align(block, array.dtype)

        return vector(array, types.int64, lanes), codegen

    return intrinsic(load)


# Reads a block, or a row of one number per head.
load = _loader(lambda lanes: lanes.size)
_load_row = _loader(lambda lanes: lanes.heads)


@intrinsic
def _repeat(typing_context, row, lanes):
    heads, features = lanes.value.heads, lanes.value.features
    vector = _Vector(row.dtype, heads * features)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _shuffle(builder, args[0], list(range(heads)) * features)

    return vector(row, lanes), codegen


@inlined
def load_heads(array, offset, lanes):
    """Reads one number per head and repeats them for each feature."""
    return _repeat(_load_row(array, offset, lanes), lanes)


@intrinsic
def store(typing_context, array, offset, block):
    """Writes a block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *args[:2])
        pointer = builder.bitcast(pointer, args[2].type.as_pointer())
        _align(builder.store(args[2], pointer), array.dtype)
        return context.get_dummy_value()

    return types.void(array, types.int64, block), codegen


@intrinsic
def prefetch(typing_context, array, offset):
    """Asks for the cache line of a number to come, which need not exist."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *args)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
        name = 'llvm.prefetch.p0i8'
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        # To read, to be kept near, of data.
        how = [ir.Constant(number, value) for value in (0, 3, 1)]
        builder.call(function, [builder.bitcast(pointer, byte), *how])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _sum_features(typing_context, block, lanes):
    heads, features = lanes.value.heads, lanes.value.features

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = (
            _shuffle(builder, args[0], list(range(f * heads, (f + 1) * heads)))
            for f in range(features)
        )
        return reduce(builder.fadd, rows)

    return _Vector(block.dtype, heads)(block, lanes), codegen


@inlined
def add_heads(array, offset, block, lanes):
    """Adds the sum of a block over its features to one number per head."""
    put_heads(array, offset, block, False, lanes)


@inlined
def put_heads(array, offset, block, is_first, lanes):
    """As `add_heads`, but overwrites at the first block."""
    total = _sum_features(block, lanes)
    if not is_first:
        total = _load_row(array, offset, lanes) + total
    store(array, offset, total)


def _arithmetic(emit: Callable[..., Any], arity: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit(builder, *args)

    def binary(typing_context, a, b):
        return a(a, b), codegen

    def ternary(typing_context, a, b, c):
        return a(a, b, c), codegen

    return intrinsic(binary if arity == 2 else ternary)


def _overload(operator: Any, emit: str, arity: int) -> None:
    """Gives blocks one of Python's operators."""

    @infer_global(operator)
    class _(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if isinstance(args[0], _Vector) and len(set(args)) == 1:
                return signature(args[0], *args)
            return None

    @lower_builtin(operator, *[_Vector] * arity)
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, emit)(*args)


_overload(operator.add, 'fadd', 2)
_overload(operator.sub, 'fsub', 2)
_overload(operator.mul, 'fmul', 2)
_overload(operator.truediv, 'fdiv', 2)
_overload(operator.neg, 'fneg', 1)


def _zero_where_equal(builder: Any, a: Any, b: Any, value: Any) -> Any:
    zero = ir.Constant(value.type, [0.0] * value.type.count)
    equal = builder.fcmp_ordered('==', a, b)
    return builder.select(equal, zero, value)


def _select(comparison: str) -> Any:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        # A NaN in `a` is kept, as by `torch.clamp`.
        return builder.select(builder.fcmp_ordered(comparison, a, b), b, a)

    return _arithmetic(emit, 2)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    vector = a.type
    bits = 64 if isinstance(vector.element, ir.DoubleType) else 32
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * 3),
        f'llvm.fma.v{vector.count}f{bits}',
    )
    return builder.call(function, [a, b, c])


# a * b + c with one rounding, the same on every path through a kernel.
fma = _arithmetic(_fma, 3)
minimum = _select('>')
maximum = _select('<')
zero_where_equal = _arithmetic(_zero_where_equal, 3)
