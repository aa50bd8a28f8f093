"""The search on Keras' JAX backend takes the steps of `BilevelModel`."""

import keras
import numpy as np
from commands import run_on_jax

from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training.bilevel import BilevelModel
from auto_deeplab_tf.training.schedules import Cosine

CLASSES, SIZE, STEPS = 4, (33, 49), 3
CLASS_WEIGHTS = (0.5, 1.0, 2.0, 1.5)
PROGRAM = """
import jax, keras
from auto_deeplab_tf.nn.execution import Execution
from auto_deeplab_tf.nn.supernet import build_supernet
from auto_deeplab_tf.training.schedules import Cosine
from benchmarks import jax_search

images, labels, class_weights = data["images"], data["labels"], data["class_weights"]
supernet = build_supernet(len(class_weights), 2, 1, 2, input_size=images.shape[2:4])
supernet.execution = Execution(remat=False)
assign(supernet)
bilevel = jax_search.Bilevel(
    supernet,
    keras.optimizers.SGD(Cosine(steps=10), momentum=0.9),
    keras.optimizers.Adam(0.003),
    class_weights=class_weights,
)
jax_search.compile_ahead(supernet, images.shape[1:], threads=2)
losses = []
for image, label in zip(images, labels):
    losses.append(bilevel.step((image, label), (image[::-1], label[::-1])))
variables = {f"variable_{i}": np.asarray(v) for i, v in enumerate(supernet.variables)}
save(losses=np.asarray(losses), **variables)
"""


def test_steps_on_jax_are_those_of_the_bilevel_model(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (STEPS, 2, *SIZE, 3)).astype("float32")
    labels = generator.integers(0, CLASSES, (STEPS, 2, *SIZE)).astype("int32")
    labels[:, :, :9] = 255
    supernet = build_supernet(CLASSES, 2, 1, 2, input_size=SIZE)
    for segment in supernet.segments:
        if segment.affine is not None:
            segment.affine.assign(generator.uniform(0.5, 1.5, segment.affine.shape))
    supernet.alpha_logits.assign(generator.normal(size=supernet.alpha_logits.shape))
    theirs = run_on_jax(
        PROGRAM,
        tmp_path,
        supernet.variables,
        images=images,
        labels=labels,
        class_weights=CLASS_WEIGHTS,
    )

    model = BilevelModel(supernet, class_weights=CLASS_WEIGHTS)
    model.compile(
        keras.optimizers.SGD(Cosine(steps=10), momentum=0.9), keras.optimizers.Adam(0.003)
    )
    for step in range(STEPS):
        model.reset_metrics()
        batches = (images[step], labels[step]), (images[step, ::-1], labels[step, ::-1])
        ours = model.train_step(batches)
        model.completed_steps.assign_add(1)
        losses = [float(ours[name]) for name in ("loss", "arch_loss")]
        np.testing.assert_allclose(losses, theirs["losses"][step], rtol=1e-4, atol=1e-4)
    for index, variable in enumerate(supernet.variables):
        values = theirs[f"variable_{index}"]
        atol = 1e-4 if "logits" in variable.name else 1e-3
        np.testing.assert_allclose(variable, values, atol=atol, err_msg=variable.path)
