"""`python -m proxy.cli` is `ghub`."""

from proxy.cli.root import main

main()
