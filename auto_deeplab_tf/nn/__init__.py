"""Networks in pure Keras 3 (`keras.ops`): they run on every Keras backend."""
