# SPDX-License-Identifier: Apache-2.0
"""What `mambaout VERB --help` says below the arguments, by verb."""

_OVERRIDES = """
Any setting of the config file can be set from the command line:
  --config.batch_size=128  --config.optimizer.learning_rate=1e-3  --config.augment.scale="(0.3, 1)"
A duration in epochs gives way to one in updates: --config.schedule.total_steps=100
All settings with their meaning: mambaout_jax/config.py
"""

EXAMPLES = {
    "train": f"""
examples:
  mambaout train --config experiments/quickstart.py
  mambaout train --config experiments/quickstart.py --workdir /tmp/run --config.seed=1
  mambaout train --config experiments/quickstart.py --dry-run

The same command again goes on where the last one stopped, or was stopped. SIGTERM and Ctrl-C save
first and exit with code 75.
{_OVERRIDES}""",
    "evaluate": f"""
examples:
  mambaout evaluate --workdir runs/quickstart
  mambaout evaluate --workdir runs/quickstart --config.evaluation.batch_size=64
  mambaout evaluate --workdir runs/quickstart --figures pictures/
  mambaout evaluate --weights mambaout_tiny.in1k --data imagenet/val --figures pictures/
  mambaout evaluate --weights mambaout_tiny.in1k --suite DIR --json suites.json
  mambaout evaluate --weights mambaout_tiny.in1k --suite DIR --suites val,real,v2
{_OVERRIDES}""",
    "predict": """
examples:
  mambaout predict --weights runs/folder photo.jpg
  mambaout predict --weights mambaout_tiny.in1k photos/ --grid predictions.png
  mambaout predict --weights hf_hub:timm/mambaout_femto.in1k photo.jpg --json
  mambaout predict --weights weights.safetensors --model mambaout_tiny photo.jpg

Weights are a run's working directory, a weight file (.safetensors, .pth), a name of the table that
`mambaout models` prints, or a repository of the hub.
""",
    "prepare": """
examples:
  mambaout prepare imagenet --train-tar ILSVRC2012_img_train.tar --val-tar ILSVRC2012_img_val.tar \\
    --out /data
  mambaout prepare imagenet --folder /data/imagenet --out /data
  mambaout prepare imagenet --val-tar ILSVRC2012_img_val.tar --out /data/validation

Writes DIR/imagenet2012 as ArrayRecord: train with --config.data.source=imagenet
--config.data.path=DIR, or read it with tfds.data_source("imagenet2012", data_dir=DIR). The archives
are to be had from image-net.org/download-images. The same command goes on where it was stopped.
Needs: pip install 'mambaout-jax[data]'
""",
    "models": """
examples:
  mambaout models
  mambaout models "*_rw"
""",
    "convert": """
examples:
  mambaout convert mambaout_tiny.pth mambaout_tiny.safetensors
  mambaout convert runs/folder folder_timm.safetensors --naming timm

Without --naming the output has this project's names, with it PyTorch's.
""",
    "analyse": """
examples:
  mambaout analyse curves runs/quickstart --out curves.png
  mambaout analyse curves runs/a runs/b runs/c
  mambaout analyse blocks --out blocks.png
""",
    "bench": """
examples:
  mambaout bench conv
  mambaout bench conv --quick
  mambaout bench conv --out experiments/results/conv.json
  mambaout bench scan --quick
  mambaout bench scan --out experiments/results/scan.json
  mambaout bench scan --widths 96 384 --lengths 196 3136 --mixers conv chunked attention
  mambaout bench scan --device gpu --dtype bfloat16
  mambaout bench throughput --out experiments/results/throughput.json
  mambaout bench throughput --models mambaout_base convnext_base --batch-size 2
  mambaout bench input --images-per-second 20000
  mambaout bench input --data imagenet/train --out experiments/results/input.json

Beside FILE.json scan writes FILE.csv and FILE.png. On a GPU it also compares with mamba_ssm's CUDA
kernel, where PyTorch and mamba_ssm are installed. throughput needs PyTorch and timm.
""",
}
