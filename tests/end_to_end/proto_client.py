"""A client in the manner of grpcurl: it knows the published `.proto` files and JSON, and no code of the project.

    python proto_client.py PROTOS_FOLDER ADDRESS

It pushes a change, reads the profile, asks a question and rates the answer, and prints what it got as JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc


class Client:
    """Calls any method of any service of the protos with JSON."""

    def __init__(self, protos: Path, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        with tempfile.NamedTemporaryFile(suffix=".bin") as out:
            files = sorted(str(path.relative_to(protos)) for path in (protos / "headwater").rglob("*.proto"))
            well_known = Path(grpc_tools.__file__).parent / "_proto"
            arguments = ["protoc", f"-I{protos}", f"-I{well_known}", "--include_imports"]
            if protoc.main([*arguments, f"--descriptor_set_out={out.name}", *files]) != 0:
                raise SystemExit("protoc failed")
            files_set = descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())
        self.pool = descriptor_pool.DescriptorPool()
        for file in files_set.file:
            self.pool.Add(file)

    def call(self, service: str, method: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Call a method with the requests (one, unless it takes a stream); returns all responses."""
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        request_type = message_factory.GetMessageClass(found.input_type)
        response_type = message_factory.GetMessageClass(found.output_type)
        messages = [json_format.ParseDict(request, request_type()) for request in requests]
        kind = f"{'stream' if found.client_streaming else 'unary'}_{'stream' if found.server_streaming else 'unary'}"
        invoke = getattr(self.channel, kind)(
            f"/{service}/{method}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )
        answer = invoke(iter(messages) if found.client_streaming else messages[0], timeout=30)
        responses = list(answer) if found.server_streaming else [answer]
        return [json_format.MessageToDict(response) for response in responses]


def main() -> None:
    """Do what a user would."""
    client = Client(Path(sys.argv[1]), sys.argv[2])
    row = {"id": 7, "email": "Grace@Example.com", "full_name": "Grace Hopper", "home_city": "Arlington"}
    change = {"source": "crm", "entity": "customers", "operation": "OPERATION_INSERT",
              "keyJson": '{"id": 7}', "afterJson": json.dumps(row)}  # fmt: skip
    [ack] = client.call("headwater.ingest.v1.IngestService", "Push", {"changes": [change], "requestId": "1"})
    token = ack["positionToken"]
    who = {"kind": "email", "value": "grace@example.com"}
    question = {"text": "What is my home city?", "as": who, "atLeast": token}
    pieces = client.call("headwater.rag_gateway.v1.RagGatewayService", "Ask", {"question": question})
    answer = pieces[-1]["answer"]
    [profile] = client.call("headwater.profile.v1.ProfileService", "GetProfile", {"identifier": who})
    rating = {"answerId": answer["answerId"], "up": True, "text": "right"}
    [rated] = client.call("headwater.feedback.v1.FeedbackService", "Rate", {"rating": rating})
    for _ in range(300):
        [kpis] = client.call("headwater.feedback.v1.FeedbackService", "GetKpis", {"kpis": ["satisfaction"]})
        if kpis.get("kpis"):
            break
        time.sleep(0.05)
    print(json.dumps({"token": token, "profile": profile, "answer": answer, "rated": rated, "kpis": kpis}))


if __name__ == "__main__":
    main()
