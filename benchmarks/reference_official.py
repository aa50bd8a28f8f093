"""tf-models-official's DeepLabV3+ as an outside reference, in a process of its own.

    python -m benchmarks.reference_official --depth=101 --input_size=513x513 --json
    python -m benchmarks.reference_official --depth=50 --num_classes=11 --output_dir=official
    python -m auto_deeplab_tf.evaluate --model=official --dataset=camvid ...

A dilated ResNet at output stride 16 with multigrid, its ASPP and the DeepLabV3+ head: the settings
of the package's experiment seg_deeplabv3plus_pascal. It is tf_keras, which cannot share a process
with Keras 3. With --output_dir it is written as a SavedModel with the signature of
export.saved_model (images float32 [N, H, W, 3], 0..255 -> class_ids int32 [N, H, W]), after
--checkpoint where one is given, else with its initial weights.
"""

import os
from typing import Any

from absl import app, flags

from auto_deeplab_tf.process import peak_memory_mib
from benchmarks import process, rows

FLAGS = flags.FLAGS
OUTPUT_STRIDE = 16
LEVEL = 4
# Of the channels of ImageNet's images, in 0..255, as the package normalises them.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def define_flags() -> None:
    flags.DEFINE_enum("depth", "101", ["50", "101"], "depth of the ResNet")
    flags.DEFINE_integer("num_classes", 19, "classes", lower_bound=1)
    flags.DEFINE_string("input_size", "513x513", "HxW of the images that are timed")
    flags.DEFINE_integer("batch_size", 1, "images at once", lower_bound=1)
    flags.DEFINE_integer("threads", 1, "threads of TensorFlow", lower_bound=1)
    flags.DEFINE_integer("iterations", 3, "forward passes that are timed; 0: none", lower_bound=0)
    flags.DEFINE_string("checkpoint", None, "checkpoint of the package's own training to read")
    flags.DEFINE_string("output_dir", None, "folder that gets the SavedModel, as version 1")
    flags.DEFINE_boolean("json", False, "print one JSON object on one line, nothing else")


def build(depth: int, num_classes: int) -> Any:
    """Builds the package's model: a tf_keras model, images normalised -> {"logits": ...}."""
    import tf_keras
    from official.vision.configs import backbones, common, decoders
    from official.vision.configs import semantic_segmentation as segmentation
    from official.vision.modeling import factory

    settings = segmentation.SemanticSegmentationModel(
        num_classes=num_classes,
        input_size=[None, None, 3],
        backbone=backbones.Backbone(
            type="dilated_resnet",
            dilated_resnet=backbones.DilatedResNet(
                model_id=depth,
                output_stride=OUTPUT_STRIDE,
                stem_type="v1",
                multigrid=[1, 2, 4],
            ),
        ),
        decoder=decoders.Decoder(
            type="aspp", aspp=decoders.ASPP(level=LEVEL, dilation_rates=[6, 12, 18])
        ),
        head=segmentation.SegmentationHead(
            level=LEVEL,
            num_convs=2,
            feature_fusion="deeplabv3plus",
            low_level=2,
            low_level_num_filters=48,
        ),
        norm_activation=common.NormActivation(
            activation="swish", norm_momentum=0.9997, norm_epsilon=1e-3, use_sync_bn=False
        ),
    )
    specs = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
    return factory.build_segmentation_model(input_specs=specs, model_config=settings)


def served(model: Any) -> Any:
    """Returns the tf.function that is served: images -> {"class_ids": ...}."""
    import tensorflow as tf

    images = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")

    @tf.function(input_signature=[images])
    def serve(images):
        logits = model((images - MEAN) / STD, training=False)["logits"]
        logits = tf.image.resize(logits, tf.shape(images)[1:3])
        return {"class_ids": tf.argmax(logits, axis=-1, output_type=tf.int32)}

    return serve


def training_step(model: Any) -> Any:
    """Returns a tf.function: images, labels int32 [N, H, W] -> loss; one step of SGD."""
    import tensorflow as tf
    import tf_keras

    optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = model((images - MEAN) / STD, training=True)["logits"]
            logits = tf.image.resize(logits, tf.shape(images)[1:3])
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            )
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def measure() -> dict[str, Any]:
    """Builds, times and writes what the flags say."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(FLAGS.threads)
    model = build(int(FLAGS.depth), FLAGS.num_classes)
    shape = (FLAGS.batch_size, *(int(side) for side in FLAGS.input_size.split("x")), 3)
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, shape), tf.float32)
    if FLAGS.checkpoint:
        checkpoint = tf.train.Checkpoint(model=model, **model.checkpoint_items)
        checkpoint.read(FLAGS.checkpoint).expect_partial().assert_existing_objects_matched()
    serve = served(model)
    result: dict[str, Any] = {
        "network": f"tf_models_official_resnet{FLAGS.depth}",
        "params": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }
    if FLAGS.iterations:
        seconds = process.median_seconds(lambda: serve(images)["class_ids"], FLAGS.iterations)
        result["seconds_per_image"] = round(seconds / FLAGS.batch_size, 4)
        result["peak_rss_mib"] = round(peak_memory_mib(), 1)
    if FLAGS.output_dir:
        module = tf.Module()
        module.model, module.serve = model, serve
        folder = os.path.join(FLAGS.output_dir, "1")
        tf.saved_model.save(module, folder, signatures={"serving_default": serve})
        result["saved_model"] = folder
    return result


def main(_: list[str]) -> None:
    result = measure()
    rows.show(result, FLAGS.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
