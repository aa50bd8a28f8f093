"""Exports a trained model as a SavedModel for TensorFlow Serving.

    python -m export.saved_model --model=RUN/model.keras --output_dir=served

writes served/1/ (the next free number), from where a server that watches the folder takes it. The
signature serving_default takes images float32 [N, H, W, 3], 0..255, and returns class_ids int32
[N, H, W]. Further signatures are probabilities, encoded_image (PNG or JPEG in, PNG masks out),
labels and metadata. A network of 1 or 4 channels takes as many; one of 4 has no encoded_image. What
was written is loaded again and compared with the Keras model before it gets its number; if the
predictions differ, nothing is published.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import MissingExtraError, UserError
from export import common, provenance

cli.define(config.SavedModelConfig)

# Non-square and odd, so that a swapped axis or a rounded size shows.
CHECKED_SIZES = ((97, 129), (64, 48))
CHECKED_ENCODED_SIZE = (80, 141)
DEFAULT_MAX_IMAGE_PIXELS = 2048 * 4096


def export_saved_model(
    model: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    input_size: Sequence[int] | None = None,
    *,
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    warmup_size: Sequence[int] | None = None,
) -> common.Exported:
    """Writes, checks and publishes a SavedModel in a new version folder.

    Args:
        model: A .keras file of `Segmenter`.
        output_dir: Folder that the version folder is added to.
        input_size: (height, width), or None to leave both free.
        max_image_pixels: Largest height times width that the signature encoded_image takes.
        warmup_size: (height, width) of the images in the warm-up requests. Default: `input_size`,
            else the size that the training images were resized to, else there are no requests.

    Returns:
        The version folder, and its agreement with the Keras model.

    Raises:
        MissingFileError: If there is no such model.
        UserError: For a model or a size that cannot be exported.
        MissingExtraError: If warm-up requests are asked for without tensorflow-serving-api.
        common.Disagreement: If the SavedModel disagrees with the Keras model.
    """
    model = common.check_model_file(model)
    # TensorFlow is imported here: the flags are read and checked before it starts.
    from export import model as model_lib
    from export import signatures
    from export import warmup as warmup_lib

    size = None if input_size is None else common.check_input_size(input_size)
    warmup = None if warmup_size is None else common.check_input_size(warmup_size)
    if size is not None and warmup not in (None, size):
        raise UserError(f"warmup_size={warmup} must be input_size={size}, which is fixed.")
    segmenter = model_lib.load(model)
    sizes = CHECKED_SIZES if size is None else (size,)
    images = [
        common.random_images(2, each, seed, segmenter.input_channels)
        for seed, each in enumerate(sizes)
    ]
    # Before the export, so that nothing the export does to the weights can hide in it.
    references = [model_lib.reference(segmenter, batch) for batch in images]
    encoded = [image for batch in images for image in batch]
    encoded += list(
        common.random_images(1, CHECKED_ENCODED_SIZE, len(images), segmenter.input_channels)
    )
    masks = model_lib.masks(segmenter, encoded, size)
    metadata = model_lib.describe(segmenter) | {"input_size": size}
    root = pathlib.Path(output_dir)
    with common.staging_folder(root) as staged:
        version = staged / "version"
        labels = staged / "labels.txt"
        labels.write_text("".join(f"{name}\n" for name in metadata["class_names"]), "utf-8")
        served = signatures.ServedSegmenter(
            segmenter,
            input_size=size,
            labels_file=labels,
            metadata_json=common.to_json(metadata),
            max_image_pixels=max_image_pixels,
        )
        served.save(version)
        extra = version / "assets.extra"
        extra.mkdir()
        (extra / "metadata.json").write_text(common.to_json(metadata) + "\n", "utf-8")
        agreement = signatures.check(version, images, references, encoded, masks, metadata)
        warmup_at = warmup or size or segmenter.image_size
        if warmup_at is not None and (warmup is not None or _can_write_warmup()):
            warmup_lib.write(extra, served.signature_names, warmup_at, segmenter.input_channels)
        provenance.write(version, model, metadata)
        return common.Exported(common.publish_version(version, root), agreement)


def _can_write_warmup() -> bool:
    """Tells whether the records can be written; warns if not, since a version works without."""
    try:
        common.require("tensorflow_serving.apis.prediction_log_pb2")
    except MissingExtraError as error:
        print(f"warning: no warm-up requests: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Exports as the flags say and prints what was published."""
    options = cli.read(config.SavedModelConfig)
    exported = export_saved_model(
        options.model,
        options.output_dir,
        options.input_size,
        max_image_pixels=options.max_image_pixels,
        warmup_size=options.warmup_size,
    )
    common.report(exported, options.json)


if __name__ == "__main__":
    cli.run(main)
