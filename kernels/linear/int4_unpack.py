"""4-bit weights inside kernels: unpacking must cost less than reading.

A word's four nibbles are or-ed into the mantissa of 128 (bf16; 1024 in fp16), which gives c + q exactly, c = 128 or
1024, with less than two instructions for two values; nothing is converted from integer. The interpreter has no
assembly: there c = 0. What follows depends on how many rows of x there are:

- few: scale and zero are applied to a group's product (`load_scale`), not to its weights:
  sum_k w x = s sum_k (c + q) x + (z - (c + 8) s) sum_k x, the last sum being a product with ones.
- many: the weights themselves are scaled (`scaled_weights`), which costs as much for any number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack_nibbles(words, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """int16 words to four tensors of c + q, nibble by nibble."""
    if INTERPRETED:
        first = (words & 15).to(tl.float32)
        second = ((words >> 4) & 15).to(tl.float32)
        third = ((words >> 8) & 15).to(tl.float32)
        fourth = ((words >> 12) & 15).to(tl.float32)
        return first, second, third, fourth
    elif BF16:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 t;
            lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 4;
            lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 8;
            lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 12;
            lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA;
            }""",
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 t;
            lop3.b32 $0, $4, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 4;
            lop3.b32 $1, t, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 8;
            lop3.b32 $2, t, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 12;
            lop3.b32 $3, t, 0x000F000F, 0x64006400, 0xEA;
            }""",
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )


@triton.jit
def load_pair(scales, at, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scale and zero as stored; the pair is one 32-bit word, except in the interpreter."""
    if INTERPRETED:
        scale, zero = tl.load(scales + 2 * at).to(tl.float32), tl.load(scales + 2 * at + 1).to(tl.float32)
    else:
        pair = tl.load(scales + at)
        HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
        scale = pair.to(tl.int16).to(HALF, bitcast=True)
        zero = (pair >> 16).to(tl.int16).to(HALF, bitcast=True)
    return scale, zero


@triton.jit
def load_scale(scales, at, OFFSET: tl.constexpr, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scale, and zero of c + q instead of q - 8, in fp32."""
    scale, zero = load_pair(scales, at, BF16, INTERPRETED)
    scale = scale.to(tl.float32)
    return scale, zero.to(tl.float32) - (OFFSET + 8.0) * scale


@triton.jit
def scaled_weights(values, scale, zero, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Weights from c + q: subtract c + 8 (exact), times scale plus zero (rounded once). `[BN, J]` and `[BN, 1]`."""
    if INTERPRETED:
        return (values - 8.0) * scale.to(tl.float32) + zero.to(tl.float32)
    else:
        scale, zero = tl.broadcast_to(scale, values.shape), tl.broadcast_to(zero, values.shape)
        if BF16:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 one, less;
                mov.b32 one, 0x3F803F80;
                mov.b32 less, 0xC308C308;
                fma.rn.bf16x2 $0, $1, one, less;
                fma.rn.bf16x2 $0, $0, $2, $3;
                }""",
                "=&r,r,r,r",
                [values, scale, zero],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        else:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 one, less;
                mov.b32 one, 0x3C003C00;
                mov.b32 less, 0xE408E408;
                fma.rn.f16x2 $0, $1, one, less;
                fma.rn.f16x2 $0, $0, $2, $3;
                }""",
                "=&r,r,r,r",
                [values, scale, zero],
                dtype=tl.float16,
                is_pure=True,
                pack=2,
            )


@triton.jit
def scaled_group(values, scales, at, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Weights `[SPLIT, BN, J]` of one group each row and warp."""
    scale, zero = load_pair(scales, at, BF16, INTERPRETED)
    return scaled_weights(values, scale[:, :, None], zero[:, :, None], BF16, INTERPRETED)
