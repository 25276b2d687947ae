# A device that only pulls models and runs them: no torch, no flwr.
FROM python:3.11-slim
WORKDIR /opt/fedofa
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[litert]"
VOLUME /models
ENV FEDOFA_STORE=/models
ENTRYPOINT ["fedofa-device"]
