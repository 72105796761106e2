"""A server that speaks Triton's gRPC protocol and obeys a model repository, with ONNX Runtime inside: for tests of the client.

It batches nothing and refuses nothing; what is served, under which names, types and shapes, is read from the configuration.
"""

from __future__ import annotations

from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

_NUMPY = {"INT64": np.int64, "FP32": np.float32}


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The models of `repository` on a free port of this machine."""

    def __init__(self, repository: Path) -> None:
        self.configs, self.sessions = {}, {}
        for path in repository.glob("*/config.pbtxt"):
            config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
            version = max((entry for entry in path.parent.iterdir() if entry.is_dir()), key=lambda entry: int(entry.name))
            self.configs[config.name] = config
            self.sessions[config.name] = ort.InferenceSession(str(version / config.default_model_filename))
        self.requests: list[tuple[int, ...]] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.url = f"localhost:{self.server.add_insecure_port('localhost:0')}"

    def __enter__(self) -> Server:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(0).wait()

    def ModelConfig(self, request, context):
        if request.name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def ModelInfer(self, request, context):
        config, feeds = self.configs[request.model_name], {}
        dims = {entry.name: list(entry.dims) for entry in config.input}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            batch, *shape = tensor.shape
            fits = [size in (-1, given) for size, given in zip(dims[tensor.name], shape, strict=True)]
            if not all(fits) or batch > config.max_batch_size:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape {list(tensor.shape)} for {tensor.name}")
            feeds[tensor.name] = np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tensor.shape)
        self.requests.append(feeds["history"].shape)
        names = [output.name for output in request.outputs]
        answers = self.sessions[request.model_name].run(names, feeds)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, answer in zip(names, answers, strict=True):
            kind = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}[answer.dtype]
            response.outputs.add(name=name, datatype=kind, shape=answer.shape)
            response.raw_output_contents.append(answer.tobytes())
        return response
