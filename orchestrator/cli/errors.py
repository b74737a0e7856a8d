"""What a command adds to an error: the command or option that remedies it."""

from __future__ import annotations

import re

from infra.contract.errors import FailedPreconditionError, LoraRetrieverError, NotFoundError

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # PEP 383: how Python decodes a byte that is not UTF-8.


def message_of(error: LoraRetrieverError) -> str:
    """Return an error's message for a user of the command line, with the remedy if a command or option is one."""
    remedy = _remedy(error)
    return f"{error.message}; {remedy}" if remedy else error.message


def shown_bytes(argument: str) -> str:
    """Return the start of an argument of the command line with bytes that are not UTF-8 in hexadecimal."""
    shown = _ESCAPED_BYTE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", argument[:60])
    return shown.encode(errors="backslashreplace").decode()


def _remedy(error: LoraRetrieverError) -> str:
    """Return the remedy for an error about a job or a dataset, which its metadata names."""
    job_id = error.metadata.get("evaluation_id", "")
    match error:
        case NotFoundError() if job_id:
            return "'loraretriever evaluate list' lists the jobs"
        case NotFoundError() if "dataset" in error.metadata:
            return "'loraretriever up --dataset-roots DIR' sets the folders that datasets are read from"
        case FailedPreconditionError() if error.metadata.get("state") == "failed":
            return f"'loraretriever evaluate retry {job_id}' writes the report"
        case FailedPreconditionError() if job_id and "state" in error.metadata:
            return f"'loraretriever evaluate watch {job_id}' follows the job"
        case _:
            return ""
