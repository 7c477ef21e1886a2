"""Where what is shared lies: weights and files, which replicas and gateways read wherever they run."""

from pathlib import Path

from sublet.config import Config


def shared_folder(config: Config) -> Path:
    """Return the folder that control plane, gateways and nodes all see.

    Raises:
        Misconfigured: the settings of the cluster cannot be used.
    """
    if config.slurm is None:
        return config.data
    # Slow to load for who has no cluster.
    from sublet.engine.slurm.settings import load_settings  # noqa: PLC0415

    return load_settings(config.slurm).shared


def artefacts_of(config: Config) -> Path:
    """Return the folder of sealed weights and files; raises as `shared_folder`."""
    return shared_folder(config) / "artefacts"
