#!/usr/bin/env bash
# The whole chain on generated street scenes, through the commands alone. Run by `make demo`.
#
#   tools/demo.sh [FOLDER]      results go under FOLDER (runs/demo)
#
# Started again after an interruption, search and train resume from their last checkpoint, the other steps from their
# start.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/demo}

run() {
  printf '\n[%3d s] python -m %s\n' "$SECONDS" "$*"
  python -m "$@"
}

run auto_deeplab_tf.search --flagfile=configs/demo_search.flags --run_dir="$folder/search"
run auto_deeplab_tf.decode --run_dir="$folder/search" --output="$folder/architecture.json"
run auto_deeplab_tf.train --flagfile=configs/demo_train.flags \
  --architecture="$folder/architecture.json" --run_dir="$folder/train"
run auto_deeplab_tf.evaluate --model="$folder/train/model.keras" --dataset=scenes --split=val \
  --trivial_predictors --output_dir="$folder/evaluate"

rm -rf "$folder/saved_model" # a second export would become version 2 beside the first
run export.saved_model --model="$folder/train/model.keras" --output_dir="$folder/saved_model"

printf '\n[%3d s] a few unseen scenes as files, for predict\n' "$SECONDS"
python - "$folder/images" <<'PYTHON'
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from PIL import Image

from auto_deeplab_tf import data

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
scenes = data.open_split("scenes", "val")
for index in range(4):
    image, _ = scenes.example(index)
    Image.fromarray(image.numpy()).save(folder / f"{scenes.ids[index]}.png")
PYTHON
run auto_deeplab_tf.predict --model="$folder/train/model.keras" --image="$folder/images" \
  --output_dir="$folder/predict"

python - "$folder" "$SECONDS" <<'PYTHON'
import json
import pathlib
import sys

folder, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
metrics = json.loads((folder / "evaluate/metrics.json").read_text())
majority = metrics["trivial_predictors"]["position_majority"]["miou"]
rows = [
    ("alpha and beta, metrics per epoch", "search/logits.npz, search/metrics.csv"),
    ("architecture, and its drawing", "architecture.json, architecture.svg, architecture.png"),
    ("alpha and beta as heat maps", "architecture_alpha_beta.svg"),
    ("trained network", "train/model.keras"),
    ("scores and overlays", "evaluate/metrics.json, evaluate/"),
    ("masks of single images", "predict/"),
    ("for TensorFlow Serving", "saved_model/"),
]
print(f"\nDone in {seconds} s. Under {folder}:")
for what, where in rows:
    print(f"  {what:<36}{where}")
print(f"\nmIoU on {metrics['num_images']} unseen scenes")
print(f"  trained network                      {metrics['miou']:.3f}")
print(f"  the most frequent class per position {majority:.3f}")
PYTHON
