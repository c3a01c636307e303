"""e4m3 inside kernels: bytes to 16 bits with five instructions for two values.

The hardware's own way to bf16 goes by fp16 and fp32, four conversions for two values at a quarter of the rate. Here the
byte's exponent and mantissa are moved under those of the 16-bit type, and a product with a power of two puts the
exponent right, subnormal values included; every step is exact. NaN (0x7f) is not known: weights hold none.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(values, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """e4m3 as bytes (uint8) to bf16 or fp16 of the same values; fp32 in the interpreter."""
    if INTERPRETED:
        bits = values.to(tl.int32)
        mantissa = (bits & 7).to(tl.float32)
        exponent = (bits >> 3) & 15
        power = ((tl.maximum(exponent, 1) + 117) << 23).to(tl.float32, bitcast=True)  # 2^(exponent - 7 - 3)
        size = tl.where(exponent > 0, mantissa + 8.0, mantissa) * power
        return tl.where(bits > 127, -size, size)
    elif BF16:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, moved, factor, none;
            mov.b32 factor, 0x7B807B80;
            mov.b32 none, 0x80008000;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            shr.u32 moved, low, 4;
            and.b32 moved, moved, 0x07F007F0;
            lop3.b32 low, low, 0x80008000, moved, 0xEA;
            shr.u32 moved, high, 4;
            and.b32 moved, moved, 0x07F007F0;
            lop3.b32 high, high, 0x80008000, moved, 0xEA;
            fma.rn.bf16x2 $0, low, factor, none;
            fma.rn.bf16x2 $1, high, factor, none;
            }""",
            "=&r,=&r,r",
            [values],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, moved, factor, none;
            mov.b32 factor, 0x5C005C00;
            mov.b32 none, 0x80008000;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            shr.u32 moved, low, 1;
            and.b32 moved, moved, 0x3F803F80;
            lop3.b32 low, low, 0x80008000, moved, 0xEA;
            shr.u32 moved, high, 1;
            and.b32 moved, moved, 0x3F803F80;
            lop3.b32 high, high, 0x80008000, moved, 0xEA;
            fma.rn.f16x2 $0, low, factor, none;
            fma.rn.f16x2 $1, high, factor, none;
            }""",
            "=&r,=&r,r",
            [values],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
