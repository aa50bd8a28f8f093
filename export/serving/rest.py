"""The JSON of TensorFlow Serving's REST interface, to arrays and back.

Rows: {"instances": [...]} gives {"predictions": [...]}. Columns: {"inputs": ...} gives {"outputs":
...}. A string is text or {"b64": ...}; outputs whose names end in `_bytes` are sent as base64.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from auto_deeplab_tf.errors import UserError
from export.serving.native import Signature, TensorInfo


def parse(content: bytes, signatures: Mapping[str, Signature]) -> tuple[str, dict[str, Any], bool]:
    """Reads the body of a `:predict` request.

    Args:
        content: The body.
        signatures: Those of the model.

    Returns:
        (name of the signature, its inputs as arrays, whether they came as rows).

    Raises:
        UserError: For a body that is no such request.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"JSON Parse error: {error}") from error
    if not isinstance(body, dict):
        raise UserError("the body must be a JSON object.")
    name = body.get("signature_name") or "serving_default"
    if not isinstance(name, str) or name not in signatures:
        raise UserError(f'Serving signature name: "{name}" not found in signature def')
    infos = signatures[name].inputs
    if ("instances" in body) == ("inputs" in body):
        raise UserError("the body must have either 'instances' or 'inputs'.")
    if "instances" in body:
        columns: Any = _columns(body["instances"], infos)
    else:
        columns = body["inputs"]
        if not isinstance(columns, dict) or "b64" in columns:
            columns = {next(iter(infos), ""): columns} if len(infos) == 1 else columns
    if not isinstance(columns, dict) or columns.keys() != infos.keys():
        raise UserError(f"the inputs of {name} must be {sorted(infos)}.")
    rows = "instances" in body
    return name, {key: _array(key, columns[key], info) for key, info in infos.items()}, rows


def format_outputs(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """Returns the body of the response to a `:predict` request."""
    values = {key: _values(key, array) for key, array in outputs.items()}
    single = next(iter(values.values())) if len(values) == 1 else None
    if not rows:
        return json.dumps({"outputs": values if single is None else single}).encode()
    if single is None:
        keys = list(values)
        single = [dict(zip(keys, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return json.dumps({"predictions": single}).encode()


def encode(data: bytes) -> dict[str, str]:
    """Returns bytes as the JSON value of a string."""
    return {"b64": base64.b64encode(data).decode()}


def _columns(instances: Any, infos: Mapping[str, TensorInfo]) -> dict[str, list[Any]]:
    if not isinstance(instances, list) or not instances:
        raise UserError("'instances' must be a list with at least one value.")
    named = [isinstance(each, dict) and "b64" not in each for each in instances]
    if all(named):
        if any(each.keys() != infos.keys() for each in instances):
            raise UserError(f"each of 'instances' must have the keys {sorted(infos)}.")
        return {key: [each[key] for each in instances] for key in infos}
    if any(named) or len(infos) != 1:
        raise UserError(f"each of 'instances' must be an object with the keys {sorted(infos)}.")
    return {next(iter(infos)): instances}


def _array(key: str, value: Any, info: TensorInfo) -> np.ndarray:
    """Returns the JSON value of one input as an array of its dtype."""
    if isinstance(value, list) and not value:
        raise UserError(f"{key} must have at least one value.")
    try:
        if info.dtype == object:
            values = value if isinstance(value, list) else [value]
            strings = [_bytes(each) for each in values]
            array = np.empty(len(strings), object)
            array[:] = strings
            return array if isinstance(value, list) else array.reshape(())
        # null and text become no numbers; NaN and Infinity are, as in TensorFlow Serving's parser.
        array = np.array(value)
        kinds = "iu" if info.dtype.kind in "iu" else "iuf"
        if array.dtype.kind not in kinds:
            raise ValueError("the values have another type, or their lists different lengths")
        with np.errstate(over="ignore"):
            return array.astype(info.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{key} cannot be read as {info.dtype.name}: {error}") from error


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and value.keys() == {"b64"}:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"b64 is no base64 ({error})") from error
    raise ValueError('a string must be text or {"b64": ...}')


def _values(key: str, array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()
    encoded = [
        encode(each) if key.endswith("_bytes") else each.decode("utf-8", "replace")
        for each in array.flat
    ]
    values = np.empty(array.shape, object)
    values.flat[:] = encoded
    return values.tolist()
