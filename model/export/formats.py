"""The forms in which a trained model leaves this project."""

from enum import Enum


class Format(Enum):
    """What `launch/export.py --format` writes. Each is a directory; docs/export.md describes their files."""

    model = "model"  # what `VidTwin.from_pretrained` loads
    torch_export = "torch-export"  # encoder and decoder for torch alone
    onnx = "onnx"  # encoder and decoder for an ONNX runtime
    diffusers = "diffusers"  # an autoencoder for diffusers, with its code


SETTINGS_FILE = "config.json"
"""The configuration in a directory for diffusers; the name is diffusers'."""
TENSORS_FILE = "diffusion_pytorch_model.safetensors"
"""The weights in a directory for diffusers; the name is diffusers'."""
CODE_FILE = "autoencoder_vidtwin.py"
"""The code in a directory for diffusers."""
CLASS = "AutoencoderVidTwin"
"""The class in that file."""
AUTO_MAP = {"AutoModel": f"{CODE_FILE.removesuffix('.py')}.{CLASS}"}
"""Where diffusers' `AutoModel` finds the class; the key `auto_map` of the configuration."""
