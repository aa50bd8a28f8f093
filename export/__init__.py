"""Turns a model.keras of `auto_deeplab_tf` into what serves: SavedModel, TFLite, ONNX / TensorRT.

Each exporter is an entry point (`python -m export.saved_model`, `export.tflite`, `export.tensorrt`)
over one function, and all keep one promise: what was written is loaded again from disk and asked
for the classes of a few images. Where it does not answer like the Keras model, nothing is
published.

- `common` checks input, compares answers, publishes atomically; no framework.
- `model` reads model.keras, answers as the reference, and freezes the graph at a fixed size.
- `image_files` decodes and resizes in graph operations; `flatbuffer` edits TFLite files.
- `signatures` holds the graph functions of the served SavedModel.
- `saved_model`, `tflite`, `tensorrt` are the entry points; `onnx` is the last one's default route.
"""
