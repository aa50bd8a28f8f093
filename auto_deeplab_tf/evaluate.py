"""Scores a trained model on a labelled split, by one confusion matrix over all of its pixels.

The model is a .keras file, or the folder of a SavedModel whose signature is that of
export.saved_model: its own, or one that another program wrote.

Writes into --output_dir: metrics.json, and under overlays/ the images that --overlays asks for,
each as ID.png (image, labels, prediction side by side) and all of them as sheet.png (sheet_.png
where that is an image's). Predictions are compared with the labels at the labels' own resolution.
With --write_label_ids also label_ids/ID_pred_labelIds.png: predictions as the data set's own label
ids (or colours) at full size. Cityscapes' evaluation script takes that folder, and its test server
a zip of it.

With --distribution_strategy the devices score different images. Every worker writes the label ids
of its own; the chief writes the rest.
"""

import json
from collections.abc import Callable
from typing import Any

from auto_deeplab_tf import cli, config
from auto_deeplab_tf.errors import UserError
from auto_deeplab_tf.files import as_path, write_text

cli.define(config.EvaluateConfig)


def main() -> None:
    """Runs the command."""
    from auto_deeplab_tf.training.cluster import Workers

    options = cli.read(config.EvaluateConfig)
    result = evaluate(options)
    if not Workers.of(options.distribution_strategy).is_chief:
        return
    if options.json:
        cli.print_json(result)
    else:
        _print(result, options.output_dir)


def evaluate(options: config.EvaluateConfig) -> dict[str, Any]:
    """Scores as the command does; returns what it writes into metrics.json.

    Of several workers each calls it, and returns the same.
    """
    from auto_deeplab_tf.data import source
    from auto_deeplab_tf.served import load_model
    from auto_deeplab_tf.training import distribution
    from auto_deeplab_tf.training.metrics import named_scores

    strategy = distribution.start(options)
    model = load_model(options.model)
    info = source.describe(options)
    names = _class_names(model, info, options.model)
    if options.write_label_ids and (options.image_size or options.max_image_side):
        raise UserError(
            "write_label_ids writes at the size of the files: leave image_size and max_image_side "
            "out (input_size makes what the network sees smaller)"
        )
    split = source.open_for(options, options.split)
    train = source.open_for(options, "train") if options.trivial_predictors else None
    output_dir = as_path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    label_ids_dir = output_dir / "label_ids" if options.write_label_ids else None
    with strategy.scope(), distribution.lost_workers_named(), source.damage_named(split):
        distribution.check_same_run(options, split.fingerprint, model.fingerprint or "")
        is_chief = distribution.workers().is_chief
        matrix, samples = _score(model, split, options, label_ids_dir)
    result = named_scores(matrix, names) | {
        "num_images": split.num_examples,
        "model": options.model,
        "dataset": options.dataset,
        "split": options.split,
        "input_size": _input_size(model, split, options),
        "scales": list(options.scales),
        "flip": options.flip,
        "architecture_fingerprint": model.fingerprint,
    }
    if not is_chief:
        return result
    if train is not None:
        result["trivial_predictors"] = {
            name: named_scores(matrix, names) for name, matrix in _trivial(train, split).items()
        }
    _draw(output_dir, samples, names, info.palette if model.palette is None else model.palette)
    write_text(output_dir / "metrics.json", json.dumps(result, indent=2) + "\n")
    return result


def _input_size(model: Any, split: Any, options: config.EvaluateConfig) -> list[int] | None:
    """The size that the network saw, for metrics.json; None where it differs by image."""
    if split.image_size is None and options.input_size is None:
        return None
    return list(model.command_input_size(split.image_size, options.input_size))


def _class_names(model: Any, info: Any, path: str) -> tuple[str, ...]:
    """The model's class names, or the data set's where it has none.

    Raises:
        UserError: If model and data set have other classes.
    """
    if model.num_classes not in (None, len(info.class_names)):
        raise UserError(
            f"model={path} has {model.num_classes} classes, dataset={info.name} has "
            f"{len(info.class_names)}: evaluate it on the data set that it was trained for"
        )
    if model.class_names is not None and model.class_names != info.class_names:
        index, names = next(
            (index, pair)
            for index, pair in enumerate(zip(model.class_names, info.class_names, strict=True))
            if pair[0] != pair[1]
        )
        raise UserError(
            f"class {index} of model={path} is {names[0]}, of dataset={info.name} {names[1]}: "
            "evaluate it on the data set that it was trained for"
        )
    return info.class_names


def _score(
    model: Any, split: Any, options: config.EvaluateConfig, label_ids_dir: Any
) -> tuple[Any, list[Any]]:
    """Returns the confusion matrix, and (id, image, labels, prediction) of the images to draw."""
    import numpy as np

    from auto_deeplab_tf import overlay
    from auto_deeplab_tf.data import pipeline
    from auto_deeplab_tf.training import distribution
    from auto_deeplab_tf.training.metrics import score

    drawn = pipeline.spread(split.num_examples, options.overlays)
    info = split.info
    num_classes = len(info.class_names)
    batches = pipeline.evaluation_batches(split, options.batch_size, share=distribution.share())
    indices = iter(pipeline.evaluation_indices(split, options.batch_size, distribution.share()))
    samples = {}

    def predict(images: Any) -> Any:
        predictions = model.predict_class_ids(
            images,
            input_size=model.command_input_size(images.shape[1:3], options.input_size),
            scales=options.scales,
            flip=options.flip,
        )
        if predictions.max() >= num_classes:
            raise UserError(
                f"model={options.model} predicts class {predictions.max()}, dataset={info.name} "
                f"has the classes 0..{num_classes - 1}"
            )
        return predictions

    def keep(images: Any, labels: Any, predictions: Any) -> None:
        for image, label, prediction in zip(images, labels, predictions, strict=True):
            index = next(indices)
            if label_ids_dir is not None:
                label_ids_dir.mkdir(exist_ok=True)
                name = f"{split.ids[index]}_pred_labelIds.png"
                overlay.save_png(label_ids_dir / name, info.stored_labels(prediction))
            if index in drawn:
                samples[index] = (split.ids[index], image, label, prediction)

    # 8 bits as `predict` sees them.
    dtype = "uint8" if info.image_bits == 8 else "float32"
    arrays = ((images.numpy().astype(dtype), labels.numpy()) for images, labels in batches)
    _, matrix = score(predict, arrays, num_classes, info.ignore_label, on_batch=keep)
    # The chief draws, also what other workers have scored.
    for index in set(drawn) - set(samples) if distribution.workers().is_chief else ():
        image, label = (np.asarray(tensor) for tensor in split.example(index))
        samples[index] = split.ids[index], image, label, predict(image.astype(dtype)[None])[0]
    return matrix, [samples[index] for index in drawn if index in samples]


def _trivial(train: Any, split: Any) -> dict[str, Any]:
    """Confusion matrices of two predictors that look at no image, made from the training labels."""
    import numpy as np

    from auto_deeplab_tf.training.metrics import LabelStatistics, score

    num_classes, ignore_label = len(split.info.class_names), split.info.ignore_label
    statistics = LabelStatistics(num_classes, ignore_label)
    for label in _labels(train):
        statistics.add(label)
    predictors: dict[str, Callable[[Any], Any]] = {
        "most_frequent_class": lambda label: np.full(label.shape, statistics.most_frequent_class()),
        "position_majority": lambda label: statistics.position_majority(label.shape),
    }
    return {
        name: score(predict, ((x, x) for x in _labels(split)), num_classes, ignore_label)[1]
        for name, predict in predictors.items()
    }


def _labels(split: Any) -> Any:
    import tensorflow as tf

    from auto_deeplab_tf.data import pipeline

    indices = tf.data.Dataset.range(split.num_examples)
    dataset = indices.map(
        lambda index: split.example(index)[1], num_parallel_calls=tf.data.AUTOTUNE
    )
    return dataset.prefetch(2).with_options(pipeline.iteration_options()).as_numpy_iterator()


def _draw(output_dir: Any, samples: list[Any], names: tuple[str, ...], palette: Any) -> None:
    from auto_deeplab_tf import overlay

    if not samples:
        return
    folder = output_dir / "overlays"
    folder.mkdir(exist_ok=True)
    sheets = {sample[0]: [sample] for sample in samples}
    name_of_all = "sheet"
    while name_of_all in sheets:  # an image may have that id
        name_of_all += "_"
    sheets[name_of_all] = samples
    for name, rows in sheets.items():
        overlay.save_png(folder / f"{name}.png", overlay.comparison_sheet(rows, names, palette))


def _print(result: dict[str, Any], output_dir: str) -> None:
    for name, value in result["per_class_iou"].items():
        print(f"  {name:<24}{'absent' if value is None else f'{value:.4f}'}")
    rows = {"model": result, **result.get("trivial_predictors", {})}
    for name, row in rows.items():
        print(f"{name:<26}mIoU {row['miou']:.4f}, pixel accuracy {row['pixel_accuracy']:.4f}")
    print(f"{result['num_images']} images of {result['dataset']} {result['split']}: {output_dir}")


if __name__ == "__main__":
    cli.run(main)
