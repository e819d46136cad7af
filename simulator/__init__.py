"""The upstreams' wire formats over real HTTP, for the demo and the tests. It does not use the gateway's code."""
