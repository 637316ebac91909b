# syntax=docker/dockerfile:1

# Runtime requirements only, pinned by hash; the servers from wheels are for development and stay out.
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/tcc
COPY requirements.txt ./
RUN /opt/tcc/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY tcc ./tcc
COPY resources ./resources
COPY workers ./workers
RUN /opt/tcc/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tcc
COPY --from=build /opt/tcc /opt/tcc
ENV PATH=/opt/tcc/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
# The API. The same image runs `tcc migrate` and `tcc-worker run`.
CMD ["tcc", "serve", "--host", "0.0.0.0", "--port", "8000"]
