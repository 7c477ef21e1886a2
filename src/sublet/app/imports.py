"""From where models may be imported: as the operator allows it."""

from collections.abc import Mapping
from pathlib import Path

from sublet.config import Config
from sublet.core.clock import Clock
from sublet.core.errors import Invalid
from sublet.models.artefact import Origin
from sublet.models.folder import Folder
from sublet.models.importing import Opens, Remote
from sublet.models.s3 import Bucket


def opens(config: Config, clock: Clock) -> Mapping[Origin, Opens]:
    """Return how each origin is opened."""

    def path(source: Mapping[str, str], _: str | None) -> Remote:
        return Folder(allowed_folder(config), source["path"])

    def bucket(source: Mapping[str, str], secret: str | None) -> Remote:
        return Bucket(source, secret, allowed=allowed_stores(config), clock=clock)

    return {Origin.PATH: path, Origin.S3: bucket}


def allowed_stores(config: Config) -> list[str]:
    told = (config.models_s3 or "").split(",")
    return [one.strip().rstrip("/") for one in told if one.strip()]


def allowed_folder(config: Config) -> Path:
    """Raises Invalid: the operator opened none."""
    if config.models_folder is None:
        raise Invalid(
            "this instance imports from no folder: its operator sets SUBLET_MODELS_FOLDER"
        )
    return config.models_folder
