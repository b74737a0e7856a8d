# The orchestrator tier: AnswerService, EvaluationService, the HTTP gateway and the evaluation workers. Installs no torch.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --create-home app
WORKDIR /app

COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY proto ./proto
COPY infra ./infra
COPY generation_service ./generation_service
COPY orchestrator ./orchestrator
COPY retrieval_service ./retrieval_service
RUN pip install --constraint requirements.lock '.[orchestrator]'

RUN mkdir /evaluations && chown app:app /evaluations

USER 10001
EXPOSE 50053 50080 9103
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-m", "loraretriever.infra.runtime.healthcheck", "127.0.0.1:50053"]
ENTRYPOINT ["python", "-m", "loraretriever.orchestrator"]
