"""One graph to serve: history in, top-K item_index and scores out; as ONNX and as TensorRT engines, with proven parity."""
