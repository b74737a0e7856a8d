# The generation tier: base model, adapter bank and decoding engine.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --create-home app
# Triton compiles its launcher when the first adapter is applied on a GPU.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app

COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY proto ./proto
COPY infra ./infra
COPY generation_service ./generation_service
COPY orchestrator ./orchestrator
COPY retrieval_service ./retrieval_service
RUN pip install --constraint requirements.lock '.[generation]'

USER 10001
EXPOSE 50052 9102
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
  CMD ["python", "-m", "loraretriever.infra.runtime.healthcheck", "127.0.0.1:50052"]
ENTRYPOINT ["python", "-m", "loraretriever.generation_service"]
