"""Export to ONNX, and encoding with ONNX Runtime."""
