# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an object store that signs URLs, in the memory of the process."""

from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class SigningStore(MemoryFileSystem):
    """File system in memory that has ETags and signs URLs; a test may let it fail.

    Attributes:
        error: Error that each call raises, or None.
        host: Beginning of each signed URL.
        signed: Arguments of the signatures.
    """

    protocol = ("gs",)
    cachable = False
    store: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    pseudo_dirs: ClassVar[list[str]] = [""]  # of its own, not that of memory://
    error: ClassVar[Exception | None] = None
    host: ClassVar[str] = "https://storage.example.com"
    signed: ClassVar[list[dict[str, Any]]] = []
    tags: ClassVar[bool] = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gs:/"))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if self.error:
            raise self.error
        found = super().info(path, **kwargs)
        if self.tags and found["type"] == "file":
            content = self.store[self._strip_protocol(path)].getvalue()
            found["etag"] = f'"{hash(content) & 0xFFFF:04x}"'
        return found

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        self.signed.append({"expiration": expiration, **kwargs})
        return f"{self.host}{path}?X-Goog-Signature=canary-{len(self.signed)}"


def signing_store(monkeypatch: Any) -> type[SigningStore]:
    """Register an empty store as ``gs://`` for the rest of the test, and return its class."""
    from fsspec.registry import _registry

    monkeypatch.setitem(_registry, "gs", SigningStore)
    for name, value in (
        ("store", {}),
        ("pseudo_dirs", [""]),
        ("signed", []),
        ("error", None),
        ("tags", True),
        ("host", "https://storage.example.com"),
    ):
        monkeypatch.setattr(SigningStore, name, value)
    return SigningStore
