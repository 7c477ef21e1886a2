"""boto3, as customers use it, pointed at a gateway."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import boto3
from botocore.config import Config

REGION: Final = "us-east-1"
# Loading what boto3 knows of a service takes longest: once for all.
_SESSION: Final = boto3.Session(
    aws_access_key_id="none", aws_secret_access_key="none", region_name=REGION
)


@contextmanager
def signing(
    url: str, key: tuple[str, str], *, service: str = "bedrock-runtime", attempts: int = 1,
    mode: str = "standard", ca: str | None = None,
) -> Iterator[Any]:  # fmt: skip
    """A client that signs with (access key's id, secret)."""
    client = _SESSION.client(
        service,
        endpoint_url=url,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        verify=ca,
        config=_config(attempts, mode, signature_version="v4"),
    )
    try:
        yield client
    finally:
        client.close()


@contextmanager
def bearing(
    url: str, key: str, *, ca: str, service: str = "bedrock-runtime", attempts: int = 1
) -> Iterator[Any]:
    """A client that shows a key, which boto3 does over https alone."""
    with mock.patch.dict(os.environ, {"AWS_BEARER_TOKEN_BEDROCK": key}):
        client = boto3.Session(region_name=REGION).client(
            service, endpoint_url=url, verify=ca, config=_config(attempts, "standard")
        )
        try:
            yield client
        finally:
            client.close()


def _config(attempts: int, mode: str, **more: Any) -> Config:
    return Config(
        retries={"total_max_attempts": attempts, "mode": mode},
        connect_timeout=5,
        read_timeout=120,
        **more,
    )
