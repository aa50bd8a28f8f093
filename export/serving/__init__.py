"""Serving a SavedModel: configuration files, a client, a load test, and a stand-in server.

- `native` runs a SavedModel through TensorFlow's C API, without Python TensorFlow.
- `worker` is a process around it; `versions` starts one for each version of a model.
- `protos` imports the messages of TensorFlow Serving, `rest` translates its JSON.
- `stand_in`, `client` and `load_test` are entry points.

The files for the real server are beside the modules: models.config, batching_fixed_size.config,
batching_encoded.config, monitoring.config, compose.yaml, kubernetes.yaml. No module here imports
Python TensorFlow.
"""
