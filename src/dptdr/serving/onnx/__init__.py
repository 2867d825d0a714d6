"""ONNX export and encoding with ONNX Runtime."""
