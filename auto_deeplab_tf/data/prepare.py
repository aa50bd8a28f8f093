"""Prepares the records of a data set, so that a search or a training starts at once.

Writes a folder of sharded records into --cache_dir at the size that the run uses, on all cores. The
commands that read the set prepare it themselves if needed; give them the same flags. A preparation
that was stopped resumes when the same command is run again. Records that exist are kept; --verify
reads them all and compares their checksums.
"""

from typing import Any

from auto_deeplab_tf import cli, config

cli.define(config.PrepareConfig)


def main() -> None:
    """Prepares, and prints what was prepared."""
    options = cli.read(config.PrepareConfig)
    result = prepare(options)
    if options.json:
        cli.print_json(result)
    else:
        _print(result)


def prepare(options: config.PrepareConfig) -> dict[str, Any]:
    """Prepares as the command does; returns what it prints with --json."""
    from auto_deeplab_tf.data import source

    splits = source.open_all(options)
    if options.verify:
        for split in splits.values():
            split.verify()
    first = next(iter(splits.values()))
    return {
        "dataset": options.dataset,
        "directory": str(first.directory),
        "fingerprint": first.fingerprint,
        "splits": {name: _describe(split) for name, split in splits.items()},
        "verified": options.verify,
    }


def _describe(split: Any) -> dict[str, Any]:
    from auto_deeplab_tf.data.split import source_halves

    described = {
        "num_examples": split.num_examples,
        "image_size": split.image_size,
        "max_image_size": split.max_image_size,
        "bytes": split.num_bytes,
    }
    if split.split == "train" and split.num_examples > 1:
        halves = zip(("train_a", "train_b"), source_halves(split), strict=True)
        described["halves"] = {name: len(half) for name, half in halves}
    return described


def _print(result: dict[str, Any]) -> None:
    for name, split in result["splits"].items():
        size = "{}x{}".format(*split["max_image_size"])
        size = size if split["image_size"] else f"up to {size}"
        text = f"{split['num_examples']} examples, {size}, {split['bytes'] / 2**20:.1f} MiB"
        halves = [f"{half} {count}" for half, count in split.get("halves", {}).items()]
        print(f"{name:<10}{', '.join([text, *halves])}")
    print(f"{'records':<10}{result['directory']}{' (verified)' if result['verified'] else ''}")


if __name__ == "__main__":
    cli.run(main)
