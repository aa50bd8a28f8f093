"""Turns a model.keras of `auto_deeplab_tf` into what serves: SavedModel, TFLite, ONNX / TensorRT.

Each exporter is an entry point (`python -m export.saved_model`, `export.tflite`, `export.tensorrt`)
over one function, and all keep one promise: what was written is loaded again from disk and run on
a few images. Where its classes are not those of the Keras model, nothing is published.

- `common` checks input, compares predictions, publishes atomically; it imports no framework.
- `model` reads model.keras, gives the reference predictions, and freezes the graph at a fixed size.
- `image_files` decodes and resizes in graph operations; `flatbuffer` edits TFLite files.
- `signatures` holds the graph functions of the served SavedModel, `warmup` its warm-up requests.
- `saved_model`, `tflite`, `tensorrt` are the entry points; `onnx` is the last one's default route.
- `serving` is a package of its own: client, load test, stand-in server, files for the real one.
- `provenance` writes and checks the manifest of every export; `verify` is its entry point.
"""
