"""Models are fetched from S3-compatible stores: signed as AWS signs, page by page, part by part."""

from collections.abc import Iterator

import msgspec
import pytest
from tests.catalogue.store_of_objects import BUCKET, ID, REGION, SECRET, Store, store

from sublet.core.clock import SystemClock
from sublet.core.errors import Invalid, Unavailable
from sublet.models.s3 import Bucket, Secret

KEY = msgspec.json.encode(Secret(access_key_id=ID, secret_access_key=SECRET)).decode()


@pytest.fixture
def objects() -> Iterator[Store]:
    with store() as ours:
        ours.objects = {
            "m/config.json": b"{}", "m/model.safetensors": bytes(range(256)) * 40,
            "m/a b+c&d/é~(1).json": b"odd", "m/": b"", "mm/other.json": b"no",
        }  # fmt: skip
        yield ours


def bucket(objects: Store, prefix: str, *, secret: str | None = KEY, name: str = BUCKET) -> Bucket:
    source = {"endpoint": objects.url, "bucket": name, "prefix": prefix, "region": REGION}
    return Bucket(source, secret, allowed=[objects.url], clock=SystemClock())


def test_what_lies_beneath_a_prefix_is_listed_page_by_page_and_read_in_pieces(
    objects: Store,
) -> None:
    objects.page = 2
    remote = bucket(objects, "m")
    assert dict(remote.files()) == {
        "config.json": 2, "model.safetensors": 10_240, "a b+c&d/é~(1).json": 3,
    }  # fmt: skip
    assert remote.read("model.safetensors", 250, 12) == bytes([*range(250, 256), *range(6)])
    assert remote.read("a b+c&d/é~(1).json", 0, 3) == b"odd"
    assert {status for _, status in objects.asked} == {200, 206}
    remote.close()


def test_one_object_is_a_model_too(objects: Store) -> None:
    remote = bucket(objects, "m/config.json")
    assert remote.files() == [("config.json", 2)]
    assert remote.read("config.json", 0, 2) == b"{}"
    remote.close()


@pytest.mark.parametrize(
    ("secret", "name", "prefix", "says"),
    [
        (None, BUCKET, "m", "403 SignatureDoesNotMatch"),
        (KEY.replace(SECRET, "another"), BUCKET, "m", "403 SignatureDoesNotMatch"),
        (KEY, "another", "m", "404 NoSuchBucket"),
        (KEY, BUCKET, "nothing", "there is nothing beneath"),
    ],
)
def test_a_refusal_is_told(
    objects: Store, secret: str | None, name: str, prefix: str, says: str
) -> None:
    remote = bucket(objects, prefix, secret=secret, name=name)
    with pytest.raises(Invalid, match=says) as told:
        remote.files()
    assert SECRET not in str(told.value)
    remote.close()


def test_no_other_address_is_called(objects: Store) -> None:
    source = {"endpoint": objects.url, "bucket": BUCKET, "prefix": "", "region": REGION}
    with pytest.raises(Invalid, match="SUBLET_MODELS_S3"):
        Bucket(source, KEY, allowed=["https://s3.example.com"], clock=SystemClock())
    with pytest.raises(Invalid, match="can be no bucket"):
        bucket(objects, "", name="../secrets")
    assert objects.asked == []


def test_a_store_that_is_busy_is_asked_again_later_and_a_changed_object_is_refused(
    objects: Store,
) -> None:
    remote = bucket(objects, "m")
    remote.files()
    objects.broken = 1
    with pytest.raises(Unavailable, match="503 SlowDown"):
        remote.read("model.safetensors", 0, 1)
    assert remote.read("model.safetensors", 0, 1) == b"\0"
    objects.objects["m/model.safetensors"] = bytes(10_240)
    with pytest.raises(Invalid, match="was changed while it was fetched"):
        remote.read("model.safetensors", 1, 1)
    remote.close()
