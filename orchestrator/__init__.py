"""The orchestrator: answers, evaluation jobs and the command line, on top of the other two tiers."""
