"""AWS Signature Version 4 for requests without a body to S3 and stores like it. Pure."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"
_UNRESERVED = "-_.~"


class Credentials(NamedTuple):
    """Who asks. Without a key the request goes unsigned."""

    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""


def encoded_path(path: str) -> str:
    """A path as it is signed and sent: slashes stay."""
    return quote(path, safe=_UNRESERVED + "/")


def encoded_query(query: Mapping[str, str]) -> str:
    """A query as it is signed and sent."""
    pairs = sorted((quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED)) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed_headers(
    credentials: Credentials, region: str, host: str, path: str, query: Mapping[str, str], *, now: datetime
) -> dict[str, str]:
    """The headers of a signed GET; none where there is no access key.

    Args:
        credentials: who asks.
        region: the store's region.
        host: host, and port unless it is the scheme's own.
        path: the path, encoded.
        query: the query, not encoded.
        now: the time, in UTC.
    """
    if not credentials.access_key:
        return {}
    at = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": at}
    if credentials.session_token:
        headers["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(("GET", path, encoded_query(query), lines, names, EMPTY_SHA256))
    scope = f"{at[:8]}/{region}/s3/aws4_request"
    text = "\n".join((_ALGORITHM, at, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    authorization = f"Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return {**headers, "authorization": f"{_ALGORITHM} {authorization}"}
