"""The settings of every command, as frozen dataclasses; the command line is made from them.

`fields` is the machinery; `options` holds the classes: what commands share, and one per command;
`serving` holds those of the commands around a server.
"""

from auto_deeplab_tf.config.fields import *  # noqa: F403
from auto_deeplab_tf.config.options import *  # noqa: F403
from auto_deeplab_tf.config.serving import *  # noqa: F403
