"""How a segment runs: inline in a traced step, or as compiled functions of its kind.

The arithmetic is `SegmentKind.compute` in every case; this decides what is compiled, by XLA or not,
and what is kept between the forward pass and the backward pass.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.segments import Arguments, SegmentKind

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

    Args:
        kind: The kind.
        execution: How it is run.
    """
    if _JAX or (_TENSORFLOW and tf.executing_eagerly()):
        return _compiled(kind, execution.recomputes(eager=True), _JAX or execution.jit_compile)
    return InlineSegment(kind, execution)


def _compute(kind: SegmentKind, jit_compile: bool, arguments: Arguments, training: bool) -> Any:
    with backend.plain_kernels() if jit_compile else contextlib.nullcontext():
        return kind.compute(arguments, training=training)


class InlineSegment:
    """A segment that stands inline in the function being traced; its gradient is the backend's own.

    Args:
        kind: The kind.
        execution: How it is run.
    """

    def __init__(self, kind: SegmentKind, execution: Execution) -> None:
        self._compute = functools.partial(_compute, kind, execution.jit_compile)
        self._recomputes = execution.recomputes(eager=False)

    def forward(self, arguments: Arguments, training: bool) -> Any:
        """See `CompiledSegment.forward`; nothing is left to keep: residuals is ()."""
        if not (self._recomputes and training):
            return (*self._compute(arguments, training=training), ())
        sources = arguments._replace(moving=None)
        present = [source for source in tf.nest.flatten(sources) if source is not None]

        @tf.recompute_grad
        def recomputed(*tensors: Tensor) -> Any:
            given = _with_leaves(sources, tensors)._replace(moving=arguments.moving)
            outputs, moments = self._compute(given, training=True)
            return outputs, () if moments is None else tf.stop_gradient(moments)

        outputs, moments = recomputed(*present)
        return outputs, None if isinstance(moments, tuple) else moments, ()


@functools.lru_cache(maxsize=128)
def _compiled(kind: SegmentKind, remat: bool, jit_compile: bool) -> "CompiledSegment":
    return CompiledSegment(kind, remat, jit_compile)


class CompiledSegment:
    """One kind of segment compiled for eager calls: its forward and its pullback.

    The pullback is one function that computes the forward again. With `remat` all of it, so that
    between the two only the segment's inputs are kept; without, the forward returns the tensors
    that `backend.keep` marks, and what leads to those alone is pruned from the pullback.

    Args:
        kind: The kind.
        remat: Whether nothing but the inputs is kept.
        jit_compile: Whether XLA compiles both.

    Attributes:
        functions: Name -> compiled function: "inference", "forward", "weights" and "architecture";
            whoever compiles them ahead of time puts the executables in their place.
    """

    def __init__(self, kind: SegmentKind, remat: bool, jit_compile: bool) -> None:
        self._remat = remat
        self._input_gradients = kind.input_gradients
        self._compute = functools.partial(_compute, kind, jit_compile)
        traced = {
            "inference": functools.partial(self._trace_forward, False),
            "forward": functools.partial(self._trace_forward, True),
            "weights": functools.partial(self._trace_pullback, "weights"),
            "architecture": functools.partial(self._trace_pullback, "architecture"),
        }
        self.functions = {name: _jit(function, jit_compile) for name, function in traced.items()}

    def forward(self, arguments: Arguments, training: bool) -> Any:
        """Computes the segment.

        Args:
            arguments: See `SegmentKind.compute`.
            training: Whether batch normalisation takes the statistics of the batch.

        Returns:
            (outputs, moments, residuals): as `SegmentKind.compute`; the tensors for `pullback`.
        """
        return self.functions["forward" if training else "inference"](arguments)

    def pullback(
        self,
        wrt: str,
        arguments: Arguments,
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        """Returns (gradients of the parameters that `wrt` names, gradients of the inputs).

        Args:
            wrt: "weights": the parameters are (kernels, affine); "architecture": those of
                `architecture`.
            arguments: Those of `forward`.
            residuals: Of `forward`.
            upstream: The gradients of the outputs.
        """
        return self.functions[wrt](arguments, residuals, upstream)

    def _trace_forward(
        self, training: bool, arguments: Arguments
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []

        def save(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        saves = training and not self._remat
        with backend.keeping(save) if saves else contextlib.nullcontext():
            outputs, moments = self._compute(arguments, training=training)
        return outputs, moments, tuple(kept)

    def _trace_pullback(
        self,
        wrt: str,
        arguments: Arguments,
        residuals: Sequence[Tensor],
        upstream: Sequence[Tensor],
    ) -> Any:
        def compute(parameters: Any, inputs: Sequence[Tensor] = arguments.inputs) -> Any:
            given = arguments._replace(inputs=inputs)
            if wrt == "weights":
                given = given._replace(kernels=parameters[0], affine=parameters[1])
            else:
                given = given._replace(architecture=parameters)
            with contextlib.nullcontext() if self._remat else _replacing(iter(residuals)):
                return self._compute(given, training=True)[0]

        weights = (arguments.kernels, arguments.affine)
        parameters = weights if wrt == "weights" else arguments.architecture
        if self._input_gradients:
            return _pull_back(compute, (parameters, arguments.inputs), upstream)
        return (*_pull_back(compute, (parameters,), upstream), ())


def _replacing(saved: Iterator[Tensor]) -> Any:
    """Returns the context in which the tensors that `backend.keep` marks are the saved ones."""
    return backend.keeping(lambda tensor: _with_value(tensor, next(saved)))


# Of each backend: `_jit` compiles a function; `_pull_back` returns the gradients of a function's
# arguments for those of its results; `_with_value` returns `value`, which equals `tensor`, and
# sends the gradient to `tensor`.
if _TENSORFLOW:

    def _jit(function: Callable[..., Any], jit_compile: bool) -> Any:
        # Outside XLA the flag must be absent: False would forbid a surrounding XLA function.
        return tf.function(function, autograph=False, jit_compile=jit_compile or None)

    def _pull_back(function: Callable[..., Any], values: Any, upstream: Any) -> Any:
        present = [value for value in tf.nest.flatten(values) if value is not None]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(present)
            outputs = function(*values)
        gradients = tape.gradient(
            outputs,
            present,
            output_gradients=upstream,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return _with_leaves(values, gradients)

    def _with_leaves(structure: Any, leaves: Iterable[Tensor]) -> Any:
        """Returns the structure with other tensors in place of its own; None stays."""
        rest = iter(leaves)
        return tf.nest.map_structure(
            lambda source: None if source is None else next(rest), structure
        )

    def _with_value(tensor: Tensor, value: Tensor) -> Tensor:
        @tf.custom_gradient
        def replace(_: Tensor) -> Any:
            return tf.identity(value), lambda upstream: upstream

        return replace(tensor)

elif _JAX:

    def _jit(function: Callable[..., Any], jit_compile: bool) -> Any:
        return jax.jit(function)

    def _pull_back(function: Callable[..., Any], values: Any, upstream: Any) -> Any:
        return jax.vjp(function, *values)[1](upstream)

    _replaced = jax.custom_vjp(lambda tensor, value: value)
    _replaced.defvjp(lambda tensor, value: (value, None), lambda _, upstream: (upstream, None))

    def _with_value(tensor: Tensor, value: Tensor) -> Tensor:
        return _replaced(tensor, value)
