"""The OpenAI-compatible HTTP gateway: the pipeline that AnswerService uses, and the catalogue, over HTTP."""
