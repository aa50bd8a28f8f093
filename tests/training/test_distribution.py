"""Strategies: one for the whole process."""

from auto_deeplab_tf.training import distribution


def test_however_it_is_called_there_is_one_strategy(mirrored):
    assert distribution.strategy("mirrored", None) is mirrored
    assert distribution.strategy(name="mirrored") is mirrored
