"""The supernet as a chain of segments, each a pure function of its weights, alpha, beta and inputs.

A `SegmentKind` is the function; a `Segment` is one place of the network where it stands, with the
variables. Segments of one kind share their compiled functions where the outer step is eager, and
stand inline where a whole step is traced.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from auto_deeplab_tf.nn import backend
from auto_deeplab_tf.nn.backend import Tensor
from auto_deeplab_tf.nn.normalization import BATCH_NORM_EPSILON


class Layout:
    """Where each named array lies in one flat vector.

    One flat variable a segment keeps the number of variables, optimizer operations and function
    arguments small.

    Args:
        shapes: Name -> shape, in the order of the vector.
        initial: `(name, shape, generator) -> float array`, the initial values of one array.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        initial: Callable[[str, tuple[int, ...], np.random.Generator], np.ndarray],
    ) -> None:
        self.shapes = dict(shapes)
        self._initial = initial
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self._sizes)

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Returns name -> tensor for a flat vector [size]."""
        if not self.shapes:
            return {}
        parts = backend.split(flat, self._sizes, 0)
        return {
            name: ops.reshape(part, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def initializer(self, seed: Any) -> Callable[..., Tensor]:
        """Returns a Keras initializer (a callable) of the flat vector."""

        def initialize(shape: Any, dtype: Any = None) -> Tensor:
            generator = np.random.default_rng(seed)
            parts = [
                np.ravel(self._initial(name, size, generator)) for name, size in self.shapes.items()
            ]
            return ops.convert_to_tensor(np.concatenate([np.zeros(0), *parts]), dtype=dtype)

        return initialize


def kernel_layout(kernels: Mapping[str, tuple[tuple[int, ...], int]]) -> Layout:
    """Returns the `Layout` of kernels, initialised by He's N(0, 2 / fan_in).

    Args:
        kernels: Name -> (shape, fan_in), fan_in the number of inputs that one output sums.
    """

    def initial(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        return generator.standard_normal(shape) * math.sqrt(2.0 / kernels[name][1])

    return Layout({name: shape for name, (shape, _) in kernels.items()}, initial)


def affine_layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Returns the `Layout` of gammas, betas and biases.

    Arrays whose name ends in "gamma" are 1 at first, the others 0.
    """
    return Layout(shapes, lambda name, shape, _: np.full(shape, float(name.endswith("gamma"))))


class BatchStatistics:
    """Applies the batch normalisations of a segment, and collects the statistics of the batch.

    Args:
        moving: float32 [2, M], moving means and variances of all normalised channels, in the order
            of the calls.
        training: True: statistics of the batch (over all replicas); False: the moving ones.
    """

    def __init__(self, moving: Tensor, training: bool) -> None:
        self._moving = moving
        self._training = training
        self._offset = 0
        self._collected: list[Tensor] = []

    def normalize(
        self, images: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
    ) -> Tensor:
        """Normalises over N, h and w; then times gamma plus beta.

        Args:
            images: float [N, h, w, C].
            gamma: float32 [C]; None for 1.
            beta: float32 [C]; None for 0.
        """
        channels = images.shape[-1]
        gamma = np.ones(channels, "float32") if gamma is None else gamma
        beta = np.zeros(channels, "float32") if beta is None else beta
        if self._training:
            images, mean, variance = backend.normalize_batch(
                images, gamma, beta, BATCH_NORM_EPSILON
            )
            self._collected.append(ops.stack([mean, variance]))
            return images
        mean, variance = (
            self._moving[row, self._offset : self._offset + channels] for row in (0, 1)
        )
        self._offset += channels
        scale = gamma * ops.rsqrt(variance + BATCH_NORM_EPSILON)
        shift = beta - mean * scale
        return images * ops.cast(scale, images.dtype) + ops.cast(shift, images.dtype)

    def moments(self) -> Tensor:
        """Returns the batch's statistics, float32 [2, M]; the moving ones in inference."""
        if self._training and self._collected:
            return ops.concatenate(self._collected, axis=1)
        return self._moving


def spread(values: Tensor, axis: int, count: int) -> Tensor:
    """Repeats a tensor along an axis of length 1, as broadcasting does; its gradient is one sum."""
    if count == 1:
        return values

    @ops.custom_gradient
    def repeat(values: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            return ops.sum(upstream, axis=axis, keepdims=True)

        return ops.concatenate([values] * count, axis=axis), gradient

    return repeat(values)


class Arguments(NamedTuple):
    """What a segment is computed with.

    Attributes:
        kernels: float32 [kernels.size]; None where that is 0; likewise:
        affine: float32 [affine.size].
        moving: float32 [2, num_normalized].
        architecture: The alpha / beta tensors that the segment reads; may be empty.
        inputs: Feature maps.
    """

    kernels: Tensor
    affine: Tensor
    moving: Tensor
    architecture: Sequence[Tensor]
    inputs: Sequence[Tensor]


class SegmentKind:
    """A pure function with the layout of its weights.

    Two kinds that compare equal are the same function.

    Attributes:
        input_gradients: Whether anything before the segment needs a gradient through its inputs.
    """

    input_gradients = True

    @property
    def kernels(self) -> Layout:
        """How the convolution kernels lie in their vector; weight decay applies to them."""
        return kernel_layout({})

    @property
    def affine(self) -> Layout:
        """How gammas, betas and biases lie in theirs."""
        return affine_layout({})

    @property
    def normalized(self) -> tuple[tuple[Any, int], ...]:
        """(name, channels) of each batch normalisation, in the order of the computation."""
        return ()

    @property
    def num_normalized(self) -> int:
        """M, the number of batch-normalised channels."""
        return sum(channels for _, channels in self.normalized)

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """How the trainable weights lie in their flat vectors: a `Layout` of each vector."""
        return self.kernels, self.affine

    def compute(self, arguments: Arguments, training: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Computes the outputs.

        Args:
            arguments: The tensors.
            training: Static.

        Returns:
            (outputs, moments): tuple of tensors; float32 [2, num_normalized].
        """
        raise NotImplementedError


def project(images: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """ReLU and a 1x1 convolution with a stride.

    images [N, h, w, C], kernel [C, D] -> [N, ceil(h / stride), ..., D].
    """
    if stride > 1:
        images = images[:, ::stride, ::stride]
    return ops.conv(ops.relu(images), ops.reshape(kernel, (1, 1, *kernel.shape)), padding="same")


class Segment(keras.layers.Layer):
    """One place of the supernet: a kind, its variables, the states it reads and writes.

    Args:
        kind: `SegmentKind`.
        reads: Names of the feature states read.
        writes: Names of the states written.
        reads_architecture: Names of the alpha / beta states read.
        seed: Of the initial kernels, for `numpy.random.default_rng`.
    """

    def __init__(
        self,
        kind: SegmentKind,
        reads: Iterable[str],
        writes: Iterable[str],
        reads_architecture: Iterable[str] = (),
        seed: Any = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.reads = tuple(reads)
        self.writes = tuple(writes)
        self.reads_architecture = tuple(reads_architecture)
        self.kernels = self._vector("kernels", kind.kernels, seed)
        self.affine = self._vector("affine", kind.affine, seed)
        self.moving = None
        if kind.num_normalized:
            self.moving = self.add_weight(
                name="moving",
                shape=(2, kind.num_normalized),
                initializer=_zero_mean_unit_variance,
                trainable=False,
                dtype="float32",
                aggregation="mean",
            )
        self.built = True

    def _vector(self, name: str, layout: Layout, seed: Any) -> Any:
        if not layout.size:
            return None
        return self.add_weight(
            name=name, shape=(layout.size,), initializer=layout.initializer(seed), dtype="float32"
        )

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the values of its variables, None for none: (kernels, affine, moving)."""
        weights = (self.kernels, self.affine, self.moving)
        kernels, affine, moving = (
            None if variable is None else backend.read(variable) for variable in weights
        )
        return kernels, affine, moving

    def arguments(
        self, weights: tuple[Tensor, Tensor, Tensor], states: Mapping[str, Tensor]
    ) -> Arguments:
        """Returns what the kind computes with.

        Args:
            weights: Of `read`.
            states: Tensors by name.
        """
        return Arguments(
            *weights,
            tuple(states[name] for name in self.reads_architecture),
            tuple(states[name] for name in self.reads),
        )


def _zero_mean_unit_variance(shape: Any, dtype: Any = None) -> Tensor:
    return ops.stack([ops.zeros(shape[1:], dtype), ops.ones(shape[1:], dtype)])
