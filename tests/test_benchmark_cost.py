"""What is counted from the formulation against the convolutions of a traced graph."""

import math

import pytest
import tensorflow as tf

from auto_deeplab_tf.nn.execution import Execution, runner
from auto_deeplab_tf.nn.supernet import build_supernet
from benchmarks import cost

SIZE = (65, 97)


def graph_multi_adds(segment, images, shapes):
    """Multiply-adds of all convolutions in the plain forward graph of a segment, for one image."""
    states = {name: tf.zeros((1, *shape)) for name, shape in shapes.items()} | images
    states |= {"alpha": tf.zeros((5, 8)), "alpha_logits": tf.zeros((5, 8))}
    states |= {name: tf.zeros(_predecessors(segment)) for name in segment.reads_architecture[1:]}
    function = runner(segment.kind, Execution(jit_compile=True)).functions["forward"]
    graph = function.get_concrete_function(segment.arguments(segment.read(), states)).graph
    depthwise = convolution = 0
    for op in graph.get_operations():
        if op.type == "DepthwiseConv2dNative":
            kernel, output = op.inputs[1].shape, op.outputs[0].shape
            depthwise += math.prod(kernel[:2]) * math.prod(output)
        elif op.type == "Conv2D":
            kernel, output = op.inputs[1].shape, op.outputs[0].shape
            convolution += math.prod(kernel[:3]) * math.prod(output)
        elif op.type == "Einsum":  # the plain pointwise
            labels = op.get_attr("equation").decode().split("->")[0].split(",")
            sizes = {}
            for names, tensor in zip(labels, op.inputs, strict=True):
                sizes |= dict(zip(names, tensor.shape, strict=True))
            convolution += math.prod(sizes.values())
    return depthwise, convolution


def _predecessors(segment):
    return len(getattr(segment.kind, "predecessors", ()))


@pytest.mark.parametrize("kwargs", [{}, {"share_operations": False, "atrous": "full"}])
def test_counted_multi_adds_are_those_of_the_graph(kwargs):
    supernet = build_supernet(5, 2, 2, 4, input_size=SIZE, **kwargs)
    counts = {count.name: count for count in cost.count(supernet, SIZE)}
    # The nodes that resize nothing: that too would be a matrix product.
    names = ("layer_0_level_0", "layer_0_level_1", "layer_1_level_2")
    nodes = [s for s in supernet.segments if s.name in names]
    shapes = {"stem_2": (33, 49, 64), "stem_4": (17, 25, 128)}
    shapes |= {"layer_0_level_0": (17, 25, 8), "layer_0_level_1": (9, 13, 16)}
    for segment in nodes:
        works = counts[segment.name].works
        depthwise, convolution = graph_multi_adds(segment, {}, shapes)
        expected = sum(w.multi_adds for w in works if w.name == "convolution")
        assert depthwise == sum(w.multi_adds for w in works if w.name == "depthwise"), segment.name
        assert convolution == expected, segment.name


def test_recomputation_works_more():
    supernet = build_supernet(5, 3, 2, 4, input_size=SIZE)
    counts = cost.count(supernet, SIZE)
    once, again = (cost.iteration(counts, 2, remat) for remat in (False, True))
    for name in cost.WORKS:
        assert once[name].values < again[name].values < 1.5 * once[name].values
    doubled = cost.iteration(counts, 4, True)
    assert doubled["depthwise"].multi_adds == 2 * again["depthwise"].multi_adds
