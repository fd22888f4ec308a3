# ssv2rt for NVIDIA GPUs: NVDEC through DALI, training, TensorRT engines.
#
#   docker build -t ssv2rt .
#   docker run --rm --gpus all --shm-size=1g -v "$PWD:/work" ssv2rt doctor
#   docker run --rm --gpus all --shm-size=1g -v "$PWD:/work" ssv2rt train --data /work/ssv2
#
# For drivers from 525 on that do not run CUDA 13 (which wants 580), all three together:
#
#   docker build -t ssv2rt --build-arg CUDA=12.6.3 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 \
#     --build-arg CUDA_MAJOR=12 .

ARG CUDA=13.0.1
# The wheels bring CUDA and cuDNN of their own; the runtime image has the libraries that DALI looks for on the machine.
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04

ARG CUDA_MAJOR=13
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A compiler for torch.compile. Its versions are those of the base image's distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

# video: without it the container has no NVDEC. utility: nvidia-smi and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,video,utility \
    PATH=/opt/venv/bin:${PATH} \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/ssv2rt

# What is large and seldom changes comes first: torch and TensorRT, for the same CUDA.
COPY scripts/constraints.txt scripts/
RUN pip install "$(grep '^torch==' scripts/constraints.txt)" --index-url "${TORCH_INDEX}" \
    && pip install "tensorrt-cu${CUDA_MAJOR}>=10.8,<12" --extra-index-url https://pypi.nvidia.com

# DALI for that CUDA, too: the requirement and its pin change their name. And last, since torch names another one: torch for
# CUDA 12.6 brings a cuDNN before 9.15, with which Conv3d in half precision is slow.
COPY pyproject.toml README.md ./
COPY ssv2rt ssv2rt
COPY pipelines pipelines
COPY engines engines
RUN sed -i "s/nvidia-dali-cuda120/nvidia-dali-cuda${CUDA_MAJOR}0/" pyproject.toml scripts/constraints.txt \
    && sed -i "/^torch==/d" scripts/constraints.txt \
    && pip install -c scripts/constraints.txt . \
    && pip install -c scripts/constraints.txt hypothesis nvidia-ml-py pytest \
    && pip install --no-deps --upgrade "nvidia-cudnn-cu${CUDA_MAJOR}>=9.15"

# What proves the image on a GPU: docker run --gpus all --entrypoint python IMAGE /opt/ssv2rt/scripts/gpu_check.py
COPY scripts scripts
COPY tests tests

# Runs as any user: docker run --user "$(id -u):$(id -g)" ...
ENV HOME=/tmp \
    SSV2RT_CACHE=/tmp/ssv2rt
WORKDIR /work
ENTRYPOINT ["ssv2rt"]
CMD ["--help"]
