"""Depthwise convolutions for JAX on NVIDIA GPUs, as Triton kernels written in Pallas.

cuDNN serves such a convolution by grouped ones of one channel each. Here the kernels that read one
map are one launch: a program holds a tile of columns and channels in registers, reads each shifted
tile once and multiplies it by the taps of all kernels. Sums are float32.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Tensor = Any

# Columns and channels of a tile, and the rows whose filter gradients one program sums.
COLUMNS, CHANNELS, ROWS = 32, 64, 16


def depthwise_convs(images: Tensor, kernels: Sequence[Tensor], rate: int) -> Tensor:
    """Convolves each channel with kernels of its own, at stride 1, zero padded to the same size.

    Args:
        images: float [N, h, w, C].
        kernels: List of float [k, k, C], each k odd.
        rate: int, the atrous rate.

    Returns:
        float [N, h, w, len(kernels) * C]: the results side by side.
    """
    # All of one size, so that they share their shifted tiles, and a loop its rows of taps.
    size = max(kernel.shape[0] for kernel in kernels)
    margins = [(size - kernel.shape[0]) // 2 for kernel in kernels]
    padded = [jnp.pad(k, ((m, m), (m, m), (0, 0))) for k, m in zip(kernels, margins, strict=True)]
    return _convs(rate, tuple(margins), images, jnp.stack(padded))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convs(rate, margins, images, kernels):
    """kernels: float [K, k, k, C]; margins: how many outer rows of taps of each are 0."""
    return _by_tiles(images, kernels, rate=rate, gathers=False)


def _convs_forward(rate, margins, images, kernels):
    return _convs(rate, margins, images, kernels), (images, kernels)


def _convs_backward(rate, margins, saved, upstream):
    images, kernels = saved
    gradient = _by_tiles(upstream, kernels[:, ::-1, ::-1], rate=rate, gathers=True)
    by_kernel = [
        jnp.pad(
            _filter_gradient(images, upstream, index, kernels.shape[1] - 2 * margin, rate),
            ((margin, margin), (margin, margin), (0, 0)),
        )
        for index, margin in enumerate(margins)
    ]
    return gradient, jnp.stack(by_kernel).astype(kernels.dtype)


_convs.defvjp(_convs_forward, _convs_backward)


def _divided(value, divisor):
    """`divmod` of an int32 >= 0 in a kernel."""
    if divisor == 1:
        return value, 0
    quotient = jax.lax.div(value, jnp.int32(divisor))
    return quotient, value - quotient * divisor


def _interpreted():
    return jax.default_backend() == "cpu"


@functools.partial(jax.jit, static_argnames=("rate", "gathers"))
def _by_tiles(images, kernels, rate, gathers):
    """A program for each row, tile of columns and tile of channels of the result.

    Args:
        images: float [N, h, w, C]; where `gathers` [N, h, w, K * C].
        kernels: float [K, k, k, C].
        rate: Atrous rate.
        gathers: False: one map, the results of the kernels side by side. True: maps side by side,
            a kernel for each, and the sum of their results.
        rate: The atrous rate.
    """
    number, size, _, channels = kernels.shape
    batch, height, width, _ = images.shape
    columns = min(COLUMNS, pl.next_power_of_2(width))
    tile = min(CHANNELS, pl.next_power_of_2(channels))
    results = 1 if gathers else number

    def body(images, kernels, result):
        image, row = _divided(pl.program_id(0), height)
        xs = pl.program_id(1) * columns + jnp.arange(columns)
        cs = pl.program_id(2) * tile + jnp.arange(tile)
        is_channel = cs < channels

        def add_taps(i, sums):
            sums = list(sums)
            shifted_row = row + (i - size // 2) * rate
            for j in range(size):
                shifted = xs + (j - size // 2) * rate
                inside = (shifted_row >= 0) & (shifted_row < height)
                inside = inside & (shifted >= 0) & (shifted < width)
                mask = inside[:, None] & is_channel[None, :]
                for k in range(number):
                    if gathers or k == 0:
                        place = (image, shifted_row, shifted[:, None], k * channels + cs[None, :])
                        values = triton.load(images.at[place], mask=mask, other=0.0)
                        values = values.astype("float32")
                    taps = triton.load(kernels.at[k, i, j, cs], mask=is_channel, other=0.0)
                    sums[0 if gathers else k] += values * taps.astype("float32")[None, :]
            return tuple(sums)

        zeros = tuple(jnp.zeros((columns, tile), "float32") for _ in range(results))
        mask = (xs < width)[:, None] & is_channel[None, :]
        for k, total in enumerate(jax.lax.fori_loop(0, size, add_taps, zeros)):
            place = (image, row, xs[:, None], k * channels + cs[None, :])
            triton.store(result.at[place], total.astype(result.dtype), mask=mask)

    return pl.pallas_call(
        body,
        grid=(batch * height, pl.cdiv(width, columns), pl.cdiv(channels, tile)),
        out_shape=jax.ShapeDtypeStruct((batch, height, width, results * channels), images.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=_interpreted(),
    )(images, kernels)


@functools.partial(jax.jit, static_argnames=("index", "size", "rate"))
def _filter_gradient(images, upstream, index, size, rate):
    """The gradient of kernel number `index`: float32 [size, size, C].

    A program sums over some rows for one row of taps; its sums are added up outside.
    """
    batch, height, width, channels = images.shape
    columns = min(COLUMNS, pl.next_power_of_2(width))
    tile = min(32, pl.next_power_of_2(channels))
    parts = pl.cdiv(batch * height, ROWS)
    tiles = pl.cdiv(width, columns)

    def body(images, upstream, result):
        part, i = pl.program_id(0), pl.program_id(2)
        cs = pl.program_id(1) * tile + jnp.arange(tile)
        is_channel = (cs < channels)[None, :]

        def add_tile(step, sums):
            step, column_tile = _divided(step, tiles)
            row = part * ROWS + step
            xs = column_tile * columns + jnp.arange(columns)
            valid = (row < batch * height) & (xs < width)
            image, row = _divided(row, height)
            place = (image, row, xs[:, None], index * channels + cs[None, :])
            mask = valid[:, None] & is_channel
            gradient = triton.load(upstream.at[place], mask=mask, other=0.0).astype("float32")
            shifted_row = row + (i - size // 2) * rate
            valid = valid & (shifted_row >= 0) & (shifted_row < height)
            found = []
            for j, total in enumerate(sums):
                shifted = xs + (j - size // 2) * rate
                mask = (valid & (shifted >= 0) & (shifted < width))[:, None] & is_channel
                place = (image, shifted_row, shifted[:, None], cs[None, :])
                values = triton.load(images.at[place], mask=mask, other=0.0)
                found.append(total + gradient * values.astype("float32"))
            return tuple(found)

        zeros = tuple(jnp.zeros((columns, tile), "float32") for _ in range(size))
        for j, total in enumerate(jax.lax.fori_loop(0, ROWS * tiles, add_tile, zeros)):
            triton.store(result.at[part, i, j, cs], jnp.sum(total, axis=0), mask=cs < channels)

    partial = pl.pallas_call(
        body,
        grid=(parts, pl.cdiv(channels, tile), size),
        out_shape=jax.ShapeDtypeStruct((parts, size, size, channels), "float32"),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=_interpreted(),
    )(images, upstream)
    return jnp.sum(partial, axis=0)
