"""How a segment runs: inline in a traced step, or as compiled functions of its kind.

The arithmetic is `SegmentKind.compute` in every case; this decides what is compiled, by XLA or not,
and what is kept between the forward pass and the backward pass.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.segments import SegmentKind

_TENSORFLOW = keras.backend.backend() == "tensorflow"
_JAX = keras.backend.backend() == "jax"
if _TENSORFLOW:
    import tensorflow as tf
elif _JAX:
    import jax


@dataclasses.dataclass(frozen=True)
class Execution:
    """Settings that change what a step costs, never what it computes.

    Attributes:
        remat: Whether the backward pass computes the insides of a segment once more, so that only
            its inputs are kept between the passes; None: where the step is eager.
        jit_compile: Whether XLA compiles the functions.
    """

    remat: bool | None = None
    jit_compile: bool = False

    def recomputes(self, eager: bool) -> bool:
        """Tells whether segments are recomputed in an eager step, or in a traced one."""
        return eager if self.remat is None else self.remat


def runner(kind: SegmentKind, execution: Execution) -> Any:
    """Returns what runs a kind of segment: compiled, or inline in a traced TensorFlow function.

    JAX always compiles by XLA; inside a function that is being traced the call stands as one.

    It has `forward(kernels, affine, moving, architecture, inputs, training) -> (outputs, moments,
    residuals)`, and when compiled also `pullback`.

    Args:
        kind: `SegmentKind`.
        execution: `Execution`.
    """
    if _TENSORFLOW and tf.executing_eagerly():
        return _compiled(kind, execution.recomputes(eager=True), execution.jit_compile)
    if _JAX:
        return _jax_compiled(kind, execution.recomputes(eager=True))
    return InlineSegment(kind, execution)


def _compute(kind: SegmentKind, jit_compile: bool, *arguments: Any, training: bool) -> Any:
    with backend.plain_kernels() if jit_compile else contextlib.nullcontext():
        compute: Callable[..., Any] = kind.compute
        return compute(*arguments, training=training)


class InlineSegment:
    """A segment that stands inline in the function being traced; its gradient is the backend's own.

    Args:
        kind: `SegmentKind`.
        execution: `Execution`.
    """

    def __init__(self, kind: SegmentKind, execution: Execution) -> None:
        self._compute = functools.partial(_compute, kind, execution.jit_compile)
        self._recomputes = execution.recomputes(eager=False)

    def forward(
        self,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        training: bool,
    ) -> Any:
        """See `runner`; nothing is left to keep: residuals is ()."""
        if not (self._recomputes and training):
            arguments = (kernels, affine, moving, architecture, inputs)
            return (*self._compute(*arguments, training=training), ())
        sources = (kernels, affine, architecture, inputs)
        present = [source for source in tf.nest.flatten(sources) if source is not None]

        @tf.recompute_grad
        def recomputed(*tensors: Tensor) -> Any:
            values = iter(tensors)
            kernels, affine, architecture, inputs = tf.nest.map_structure(
                lambda source: None if source is None else next(values), sources
            )
            outputs, moments = self._compute(
                kernels, affine, moving, architecture, inputs, training=True
            )
            return outputs, () if moments is None else tf.stop_gradient(moments)

        outputs, moments = recomputed(*present)
        return outputs, None if isinstance(moments, tuple) else moments, ()


@functools.lru_cache(maxsize=128)
def _compiled(kind: SegmentKind, remat: bool, jit_compile: bool) -> "CompiledSegment":
    return CompiledSegment(kind, remat, jit_compile)


class CompiledSegment:
    """One kind of segment compiled for calls from eager TensorFlow: its forward and its pullback.

    The pullback is one function that computes the forward again. With `remat` all of it, so that
    between the two only the segment's inputs are kept; without, the forward hands over the tensors
    that `backend.keep` marks, and what leads to those alone is pruned from the pullback.

    Args:
        kind: `SegmentKind`.
        remat: Whether nothing but the inputs is kept.
        jit_compile: Whether XLA compiles both.
    """

    def __init__(self, kind: SegmentKind, remat: bool, jit_compile: bool) -> None:
        self._kind = kind
        self._remat = remat
        self._compute = functools.partial(_compute, kind, jit_compile)

        def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
            # Outside XLA the flag must be absent: False would forbid a surrounding XLA function.
            return tf.function(
                functools.partial(function, *arguments),
                autograph=False,
                jit_compile=jit_compile or None,
            )

        self._forward = {
            training: compiled(self._trace_forward, training) for training in (False, True)
        }
        self._pullback = {
            wrt: compiled(self._trace_pullback, wrt) for wrt in ("weights", "architecture")
        }

    @property
    def functions(self) -> dict[str, Any]:
        """The compiled functions: "inference", "forward", "weights" and "architecture"."""
        return {
            "inference": self._forward[False],
            "forward": self._forward[True],
            **self._pullback,
        }

    def forward(
        self,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        training: bool,
    ) -> Any:
        """See `runner`."""
        return self._forward[training](kernels, affine, moving, architecture, inputs)

    def pullback(
        self,
        wrt: str,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        """Returns (gradients of the parameters that `wrt` names, gradients of the inputs).

        Args:
            wrt: "weights": the parameters are (kernels, affine); "architecture": those of
                `architecture`.
            kernels: See `SegmentKind.compute`.
            affine: See `SegmentKind.compute`.
            moving: See `SegmentKind.compute`.
            architecture: See `SegmentKind.compute`.
            inputs: See `SegmentKind.compute`.
            residuals: Of `forward`.
            upstream: The gradients of the outputs.
        """
        arguments = (kernels, affine, moving, architecture, inputs)
        return self._pullback[wrt](*arguments, residuals, upstream)

    def _trace_forward(
        self, training: bool, *arguments: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []

        def save(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        saves = training and not self._remat
        with backend.keeping(save) if saves else contextlib.nullcontext():
            outputs, moments = self._compute(*arguments, training=training)
        return outputs, moments, tuple(kept)

    def _trace_pullback(
        self,
        wrt: str,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        parameters = (kernels, affine) if wrt == "weights" else architecture
        sources = (parameters, inputs if self._kind.input_gradients else ())
        present = [source for source in tf.nest.flatten(sources) if source is not None]
        saved = iter(residuals)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(present)
            with (
                contextlib.nullcontext()
                if self._remat
                else backend.keeping(lambda tensor: _with_value(tensor, next(saved)))
            ):
                outputs, _ = self._compute(
                    kernels, affine, moving, architecture, inputs, training=True
                )
        gradients = iter(
            tape.gradient(
                outputs,
                present,
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        )
        return tf.nest.map_structure(
            lambda source: None if source is None else next(gradients), sources
        )


def _with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """Returns `value`, which equals `tensor`; the gradient goes to `tensor`."""

    @tf.custom_gradient
    def replace(_: Tensor) -> Any:
        return tf.identity(value), lambda upstream: upstream

    return replace(tensor)


@functools.lru_cache(maxsize=128)
def _jax_compiled(kind: SegmentKind, remat: bool) -> "JaxSegment":
    return JaxSegment(kind, remat)


class JaxSegment:
    """One kind of segment compiled for calls from JAX, as `CompiledSegment` is for TensorFlow.

    Args:
        kind: `SegmentKind`.
        remat: Whether nothing but the inputs is kept; else what `backend.keep` marks.

    Attributes:
        functions: name -> `jax.jit` function: "inference", "forward", "weights" and
            "architecture"; whoever compiles them ahead of time puts the executables in their place.
    """

    def __init__(self, kind: SegmentKind, remat: bool) -> None:
        self._kind = kind
        self._remat = remat
        self.functions = {
            "inference": jax.jit(functools.partial(self._forward, False)),
            "forward": jax.jit(functools.partial(self._forward, True)),
            "weights": jax.jit(functools.partial(self._pullback, "weights")),
            "architecture": jax.jit(functools.partial(self._pullback, "architecture")),
        }

    def forward(
        self,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        training: bool,
    ) -> Any:
        """See `runner`."""
        function = self.functions["forward" if training else "inference"]
        return function(kernels, affine, moving, architecture, inputs)

    def pullback(
        self,
        wrt: str,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        """See `CompiledSegment.pullback`."""
        arguments = (kernels, affine, moving, architecture, inputs)
        return self.functions[wrt](*arguments, residuals, upstream)

    def _forward(
        self, training: bool, *arguments: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []

        def save(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        saves = training and not self._remat
        with backend.keeping(save) if saves else contextlib.nullcontext():
            outputs, moments = _compute(self._kind, True, *arguments, training=training)
        return outputs, moments, tuple(kept)

    def _pullback(
        self,
        wrt: str,
        kernels: Tensor,
        affine: Tensor,
        moving: Tensor,
        architecture: Sequence[Tensor],
        inputs: Sequence[Tensor],
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        def compute(parameters: Any, inputs: Sequence[Tensor]) -> Any:
            values = (
                (*parameters, architecture) if wrt == "weights" else (kernels, affine, parameters)
            )
            saved = iter(residuals)
            with (
                contextlib.nullcontext()
                if self._remat
                else backend.keeping(lambda tensor: _with_residual(tensor, next(saved)))
            ):
                outputs, _ = _compute(
                    self._kind, True, *values[:2], moving, values[2], inputs, training=True
                )
            return outputs

        parameters = (kernels, affine) if wrt == "weights" else architecture
        if self._kind.input_gradients:
            return jax.vjp(compute, parameters, inputs)[1](upstream)
        (gradients,) = jax.vjp(lambda parameters: compute(parameters, inputs), parameters)[1](
            upstream
        )
        return gradients, ()


if _JAX:

    @jax.custom_vjp
    def _with_residual(tensor: Tensor, value: Tensor) -> Tensor:
        """Returns `value`, which equals `tensor`; the gradient goes to `tensor`."""
        return value

    _with_residual.defvjp(lambda tensor, value: (value, None), lambda _, upstream: (upstream, None))
