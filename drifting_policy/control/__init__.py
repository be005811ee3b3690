"""From a policy to a robot: on time, smooth, within limits. NumPy only; ONNX Runtime, msgpack, websockets where used."""
