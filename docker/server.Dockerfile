FROM python:3.11-slim
WORKDIR /opt/fedofa
COPY . .
RUN pip install --no-cache-dir -c constraints.txt "torch==2.13.0+cpu" \
    || pip install --no-cache-dir -c constraints.txt "torch==2.13.0"
RUN pip install --no-cache-dir -c constraints.txt ".[server]"
ENV FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
VOLUME /state
EXPOSE 9092 9093
ENTRYPOINT ["fedofa"]
CMD ["--help"]
