"""A data set in CamVid's layout that is small and can be learnt: the colour tells the class."""

import numpy as np
from PIL import Image

SIZE = (32, 48)
VOID = 11
_CLASSES = 4  # of CamVid's 11


def write(root, counts, seed=0):
    """Writes `counts[split]` images per split, and their label maps.

    Returns:
        root.
    """
    rng = np.random.default_rng(seed)
    colors = np.array([(230, 60, 50), (60, 210, 70), (50, 70, 220), (220, 210, 60)], "float64")
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for index in range(count):
            tiles = rng.integers(0, _CLASSES, (SIZE[0] // 16, SIZE[1] // 16))
            labels = tiles.repeat(16, axis=0).repeat(16, axis=1).astype("uint8")
            image = np.clip(colors[labels] + rng.normal(0, 15, (*SIZE, 3)), 0, 255)
            labels[rng.random(SIZE) < 0.05] = VOID
            stem = f"0016E5_{index:05d}"
            Image.fromarray(image.astype("uint8")).save(root / split / f"{stem}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"{stem}.png")
    return root
