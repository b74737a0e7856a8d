"""The commands of `loraretriever`, a file each."""
