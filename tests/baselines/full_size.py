"""A step without NaN, and the same output from the file, at a network's published widths.

python tests/baselines/full_size.py NAME DTYPE FILE
"""

import sys

import keras
import numpy as np

from auto_deeplab_tf import Segmenter, build_baseline

name, dtype, file = sys.argv[1:]
rng = np.random.default_rng(0)
x = rng.uniform(0, 255, (2, 65, 97, 3)).astype("float32")
labels = rng.integers(0, 19, (2, 65, 97)).astype("int32")
model = Segmenter(build_baseline(name, dtype=dtype))
history = model.fit(x, labels, batch_size=2, epochs=2, verbose=0).history
assert np.all(np.isfinite(history["loss"]))
for variable in model.variables:
    assert np.all(np.isfinite(np.asarray(variable))), variable.path
assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
expected = np.asarray(model(x))
assert expected.dtype == np.float32 and np.all(np.isfinite(expected)) and expected.std() > 0
model.save(file)
np.testing.assert_array_equal(keras.saving.load_model(file)(x), expected)
print("the same")
