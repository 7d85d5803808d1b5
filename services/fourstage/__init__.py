"""fourstage: AlexNet's four-stage pipeline as services."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourstage.store import open_store
    from fourstage.stream import BatchStream

__version__ = "0.1.0"
__all__ = ["BatchStream", "__version__", "open_store"]


def __getattr__(name: str) -> object:
    """Import what is asked for: services need neither torch nor each other."""
    if name == "BatchStream":
        from fourstage.stream import BatchStream

        return BatchStream
    if name == "open_store":
        from fourstage.store import open_store

        return open_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
