"""Draws street scenes, each of which follows from its id.

A scene is a bent street in perspective with what stands along it, drawn nearest-wins (`drawing`),
then lit, fogged and passed through a camera (`light`). Each city has a style of its own:
architecture, greenery, weather, camera (`street`).
"""

from auto_deeplab_tf.data.scenes.street import IMAGE_SIZE, render

__all__ = ["IMAGE_SIZE", "render"]
