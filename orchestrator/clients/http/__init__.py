"""Clients of the HTTP gateway: `loraretriever.Client` and `loraretriever.AsyncClient`."""
