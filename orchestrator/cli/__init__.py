"""The command line `loraretriever`."""
