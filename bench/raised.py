"""`ghub` with room for 6,000 pictures, connections and open holds: `python -m bench.raised serve`."""

from config import settings

MOST = 6_000

# Before anything has read them.
settings.MAX_PICTURES = settings.MAX_OPEN_HOLDS = MOST

from proxy.server import descriptors  # noqa: E402

descriptors.MAX_CONNECTIONS = MOST

from proxy.cli.root import main  # noqa: E402

if __name__ == "__main__":
    main()
