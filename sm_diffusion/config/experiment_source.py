"""Makes a folder of experiments the Hydra group `experiments`, and nothing beside it.

A folder that holds `experiments/` would do as a search path too, but Hydra walks and copies all that lies below a
search path: of a checkout that is the environment, every run and every cache.
"""

from __future__ import annotations

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource

GROUP = "experiments"
SCHEME = "experiments"


class ExperimentsSource(ConfigSource):
    """`experiments:///a/folder`: the folder's files under the group `experiments`."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider=provider, path=path)
        self.files = SourcesRegistry.instance().resolve("file")(provider=provider, path=f"file://{self.path}")

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def _inner(self, config_path: str) -> str | None:
        """The path inside the folder; None where it is not of this group."""
        head, _, rest = config_path.strip("/").partition("/")
        return rest if head == GROUP else None

    def load_config(self, config_path: str) -> ConfigResult:
        inner = self._inner(config_path)
        if inner is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        return self.files.load_config(inner)

    def available(self) -> bool:
        return self.files.available()

    def is_group(self, config_path: str) -> bool:
        inner = self._inner(config_path)
        return config_path == "" if inner is None else self.files.is_group(inner)

    def is_config(self, config_path: str) -> bool:
        inner = self._inner(config_path)
        return bool(inner) and self.files.is_config(str(inner))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [GROUP] if results_filter in (None, ObjectType.GROUP) else []
        inner = self._inner(config_path)
        return [] if inner is None else self.files.list(inner, results_filter)
