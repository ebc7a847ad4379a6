# Conan with all extras, for a machine with NVIDIA GPUs (and their container toolkit) or without:
#
#     docker build --tag conan .
#     docker run --rm --gpus all --ipc host --volume "$PWD:/work" conan run recipe.yaml corpora/mine
#
# torch comes with CUDA unless TORCH_INDEX names an index of CPU builds (pytorch.org, "Get started", says where):
#
#     docker build --tag conan --build-arg TORCH_INDEX=https://… .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# A C compiler for torch.compile, ssh for training on several machines.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev openssh-client \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/conan
COPY constraints.txt .

# Most of the image, in a layer that changes of Conan leave alone.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

COPY . .
ARG EXTRAS=documents,eval,onnx,ray,s3,tensorboard,web,zh
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

WORKDIR /work
ENTRYPOINT ["conan"]
