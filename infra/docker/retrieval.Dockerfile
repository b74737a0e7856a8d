# The retrieval tier: embeds prompts with jina-embeddings-v4 and searches the catalogue in Qdrant.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --create-home app
WORKDIR /app

COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY proto ./proto
COPY infra ./infra
COPY generation_service ./generation_service
COPY orchestrator ./orchestrator
COPY retrieval_service ./retrieval_service
RUN pip install --constraint requirements.lock '.[retrieval]'

USER 10001
EXPOSE 50051 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-m", "loraretriever.infra.runtime.healthcheck", "127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "loraretriever.retrieval_service"]
