"""Train as the golden curve was made, through the configuration a user would write; see test_curve.py.

python -m tests.trainer.curve MODEL_DIRECTORY OUTPUT.json
"""

import json
import sys
from pathlib import Path

from tests.model.official_weights import golden_video
from tests.trainer.cases import as_batch
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

STEPS = 24
SETTINGS = """
    steps=24 precision=fp32 data.shards=unused data.frames=8 data.image_size=48 data.global_batch=2
    loss.sample_posterior=false loss.perceptual=none loss.kl_weight=0.001
    optim.clip=0 gan.start=12 gan.warmup=0 gan.ramp=0 gan.weight=0.05 gan.idle_steps=true
    optim.generator.name=adamw optim.generator.lr=1e-4 optim.generator.schedule=constant optim.generator.warmup=0
    optim.discriminator.name=adamw optim.discriminator.lr=1e-4 optim.discriminator.schedule=constant
    optim.discriminator.warmup=0 zero.stage=1
"""


def main() -> None:
    start, output = Path(sys.argv[1]), Path(sys.argv[2])
    words = [f"output={output.parent}", f"init_from={start}", *SETTINGS.split()]
    config = load_config(TrainConfig, [start / "config.yaml"], words)
    ranks = distributed.start(2)
    method = Autoencoder(config, ranks)
    rows = []
    for step in range(STEPS):
        terms = method.step(as_batch(golden_video((8, 48, 48), step)), step)
        rows.append({name: value.item() for name, value in terms.items()})
    output.write_text(json.dumps(rows))
    distributed.stop()


if __name__ == "__main__":
    main()
