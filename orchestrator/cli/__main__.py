"""`python -m orchestrator.cli`: the command line, without its entry point."""

from orchestrator.cli.main import main

main()
