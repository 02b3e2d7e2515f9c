"""Signatures, by the examples of the Amazon S3 API Reference ("Authenticating requests: examples")."""

from datetime import UTC, datetime

from services.ingest.s3_signing import Credentials, encoded_path, encoded_query, signed_headers

WHO = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = "examplebucket.s3.amazonaws.com"


def signature(path: str, query: dict[str, str]) -> str:
    return signed_headers(WHO, "us-east-1", HOST, path, query, now=AT)["authorization"].rpartition("=")[2]


def test_a_listing() -> None:
    expected = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert signature("/", {"max-keys": "2", "prefix": "J"}) == expected


def test_a_query_without_a_value() -> None:
    assert signature("/", {"lifecycle": ""}) == "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"


def test_without_a_key_nothing_is_signed() -> None:
    assert signed_headers(Credentials(), "us-east-1", HOST, "/", {}, now=AT) == {}


def test_a_session_token_is_signed_too() -> None:
    headers = signed_headers(WHO._replace(session_token="t"), "us-east-1", HOST, "/", {}, now=AT)
    assert headers["x-amz-security-token"] == "t"
    assert "x-amz-security-token" in headers["authorization"]


def test_paths_and_queries_are_encoded_as_they_are_signed() -> None:
    assert encoded_path("/b/a b+ü~.md") == "/b/a%20b%2B%C3%BC~.md"
    assert encoded_query({"prefix": "a/b c", "list-type": "2"}) == "list-type=2&prefix=a%2Fb%20c"
