"""Typed clients of the services: dataclasses in and out, errors of infra.contract.errors, a deadline on every call.

async with RetrievalClient("localhost:50051") as retrieval:
    result = await retrieval.retrieve(prompt, RetrievalOptions(top_k=3))

The channel retries calls that reached no server, within their deadline.
"""
