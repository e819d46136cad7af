"""The upstreams' wire formats over real HTTP, for the demo and the tests. It knows nothing of the gateway."""
