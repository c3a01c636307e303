"""e4m3 inside kernels: bytes to 16 bits with five instructions for two values.

The hardware's own way to bf16 goes by fp16 and fp32, four conversions for two values at a quarter of the rate. Here the
byte's exponent and mantissa are moved under those of the 16-bit type, and a product with a power of two puts the
exponent right, subnormal values included; every step is exact. NaN (0x7f) is not known: weights hold none.
"""

from __future__ import annotations

import triton
import triton.language as tl


def _two_words(shift: int, kept: str, factor: str, kind: str) -> str:
    """Four bytes to two words of two values. Moved by `shift`, a byte's exponent and mantissa lie in the bits `kept`;
    the product with `factor` (twice a power of two of type `kind`) puts the exponent right."""

    def word(name: str, bytes_of: str) -> str:
        return f"""
            prmt.b32 {name}, $2, 0, {bytes_of};
            shr.u32 moved, {name}, {shift};
            and.b32 moved, moved, {kept};
            lop3.b32 {name}, {name}, 0x80008000, moved, 0xEA;"""

    return f"""{{
            .reg .b32 low, high, moved, factor, none;
            mov.b32 factor, {factor};
            mov.b32 none, 0x80008000;{word("low", "0x1404")}{word("high", "0x3424")}
            fma.rn.{kind}x2 $0, low, factor, none;
            fma.rn.{kind}x2 $1, high, factor, none;
            }}"""


TO_BF16 = tl.constexpr(_two_words(4, "0x07F007F0", "0x7B807B80", "bf16"))
TO_FP16 = tl.constexpr(_two_words(1, "0x3F803F80", "0x5C005C00", "f16"))


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
    else:
        return tl.inline_asm_elementwise(
            TO_BF16 if BF16 else TO_FP16,
            "=&r,=&r,r",
            [values],
            dtype=tl.bfloat16 if BF16 else tl.float16,
            is_pure=True,
            pack=4,
        )
