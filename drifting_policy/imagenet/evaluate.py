"""`python -m drifting_policy.imagenet.evaluate ckpt=RUN data=digits`: draws samples and judges them by their features."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import resolve
from drifting_policy.data.image_cache import cache_folder
from drifting_policy.imagenet.accuracy_score import accuracy_score, check_real
from drifting_policy.imagenet.checkpoints import load_generator
from drifting_policy.imagenet.classifier import default_options
from drifting_policy.imagenet.config import EvaluateConfig, register
from drifting_policy.imagenet.drawing import draw_blocks, place_labels, sample_places
from drifting_policy.imagenet.extractors import weights_digest
from drifting_policy.imagenet.feature_sets import Images, gather
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import to_bytes
from drifting_policy.imagenet.latents import decode_latents, load_vae
from drifting_policy.imagenet.ranks import Ranks
from drifting_policy.imagenet.real_images import RealImages, Reference, open_reference
from drifting_policy.imagenet.sample_blocks import SampleBlocks, SampleShard
from drifting_policy.imagenet.sample_sets import SampleSet, read_samples
from drifting_policy.imagenet.scores import Evidence, Metric, judge
from drifting_policy.imagenet.sheet import write_sheet
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

LATENT_CHANNELS = 4
SHOWN = 64  # samples on the sheet


def run(config: EvaluateConfig) -> int:
    """Draw what is missing, and judge the samples where this process holds all of them."""
    if bool(config.ckpt) == bool(config.samples):
        raise ConfigError("Say what to evaluate: ckpt=RUN_OR_CHECKPOINT, or samples=FILE.npz or a folder of images.")
    if not config.data:
        raise ConfigError("Say what to compare with: data=digits, data=cifar10, images, or a file of statistics (.npz).")
    use_threads(config.threads)
    ranks = Ranks.here()
    device = choose_device(ranks.device(config.device))
    shard = choose_shard(config, ranks)
    judging = ranks.first and (shard is None or shard.index is None or ranks.count > 1)
    real = RealImages.open(config.data, split=config.split, size=config.size) if judging or config.labels == "data" else None
    reference = None
    with ranks.together():
        if judging and real is not None:  # before hours of drawing, for a package may be missing
            folder = cache_folder() / "features"
            reference = open_reference(real, config.extractor, split=config.split, folder=folder, device=device)
            if config.cas:
                check_real(real.splits.get(config.split))
        if config.samples:
            samples, about = read_samples(Path(config.samples)), {"samples": config.samples}
        else:
            shares = real.class_shares() if real is not None and config.labels == "data" else None
            samples, about = draw(config, shard, device=device, shares=shares, quiet=not ranks.first)
    if reference is None or real is None:
        return 0
    warnings: list[str] = []
    lesson: dict[str, Metric] = {}
    if config.cas:
        options = reference.extractor.options or default_options(config.data)
        score = accuracy_score(samples, real.splits[config.split], options, device=device)
        lesson["classification_accuracy_score"] = score
    metrics = compare(samples, reference, neighbours=config.neighbours, warnings=warnings) | lesson
    report(config, samples, {"metrics": metrics, "n": samples.count, **about, "warnings": warnings}, reference)
    return 0


def choose_shard(config: EvaluateConfig, ranks: Ranks) -> SampleShard | None:
    """The part of the samples that this process draws; None for all.

    Raises:
        ConfigError: both torchrun and the command say which, or there is nothing to draw.
    """
    if config.samples and (ranks.count > 1 or config.shard is not None):
        raise ConfigError("samples=PLACE are there already: evaluate them in one process, without shard=.")
    if config.shard is None:
        return SampleShard(ranks.index, ranks.count) if ranks.count > 1 else None
    if ranks.count > 1:
        raise ConfigError("torchrun says which part each process draws; leave out shard=.")
    return SampleShard.parse(config.shard)


def draw(
    config: EvaluateConfig, shard: SampleShard | None, *, device: torch.device, shares: list[int] | None, quiet: bool
) -> tuple[SampleSet, dict[str, Any]]:
    """All samples of a generator, after those of `shard` were drawn, and what results say of them."""
    generator = load_generator(config.ckpt, device=device)
    if shares is not None and len(shares) != generator.classes:
        raise ConfigError(f"The generator knows {generator.classes} classes, {config.data} has {len(shares)}: labels=balanced.")
    latent = generator.recipe["out_channels"] == LATENT_CHANNELS
    key = {"weights": weights_digest(generator), "seed": config.seed, "cfg": config.cfg, "labels": config.labels}
    key |= {"class_shares": shares, "vae": config.vae if latent else None}
    blocks = SampleBlocks(results_folder(config) / "samples", key, count=config.n)
    places = sample_places(config.n, classes=generator.classes, shares=shares)
    if shard is None or shard.index is not None:
        decode = choose_decoder(generator, config.vae) if latent and blocks.missing(shard) else to_bytes
        drawn = draw_blocks(
            generator,
            blocks,
            places,
            shard=shard,
            decode=decode,
            cfg_scale=config.cfg,
            seed=config.seed,
            batch=config.batch_size,
            quiet=quiet,
        )
        if config.shard is not None:
            print(f"  shard {config.shard}   {drawn} samples drawn: {blocks.folder}")
    whole = shard or SampleShard(None, 1)
    about = {"checkpoint": config.ckpt, **key, "classes": generator.classes, "network_evaluations": 1}
    return SampleSet(config.n, lambda: blocks.whole(whole), place_labels(places)), about


def choose_decoder(generator: ImageGenerator, vae: str) -> Callable[[Tensor], Images]:
    """What turns latents "b c h w" into bytes "b h w c"."""
    network = load_vae(vae, generator.positions.device)
    return lambda latents: decode_latents(network, latents)


def compare(samples: SampleSet, reference: Reference, *, neighbours: int, warnings: list[str]) -> dict[str, Metric]:
    """What the features of the samples tell, by name; `warnings` then says what to doubt."""
    extractor = reference.extractor
    features = gather(
        extractor, samples.parts(), count=samples.count, keep=samples.count, probabilities=True, label="features of the samples"
    )
    labels = samples.labels if extractor.class_names else None
    if labels is not None and not samples.of_classes(extractor.class_names):
        warnings.append("The samples are of other classes than the extractor tells apart: no accuracy is told.")
        labels = None
    if extractor.distance == "FID" and reference.about["split"] == "test":
        warnings.append("Published FIDs compare with training images; split=train does.")
    evidence = Evidence(
        extractor=extractor,
        samples=features,
        reference=reference.features,
        training=reference.training,
        unseen=reference.unseen,
        labels=labels,
        neighbours=neighbours,
        warnings=warnings,
    )
    return judge(evidence)


def report(config: EvaluateConfig, samples: SampleSet, found: Mapping[str, Any], reference: Reference) -> None:
    """Write and print what was found."""
    extractor = reference.extractor
    results = {
        **found,
        "extractor": {
            "name": extractor.name,
            "sha256": extractor.fingerprint,
            "dim": extractor.dim,
            "test_accuracy": extractor.test_accuracy,
        },
        "reference": dict(reference.about),
        "versions": versions(),
    }
    out = results_folder(config)
    file = out / f"results_{re.sub(r'[^A-Za-z0-9]+', '_', extractor.name)}.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, results)
    except OSError as error:
        raise ConfigError(f"The results cannot be written to {out} ({error}); choose another out=DIR.") from error
    first: np.ndarray = next(iter(samples.parts()))
    write_sheet(out / "samples.png", np.asarray(first[:SHOWN]), columns=8)
    print_results(results, file)


def results_folder(config: EvaluateConfig) -> Path:
    """Where results and samples lie: beside the checkpoint, where that is a folder here."""
    if config.out:
        return Path(config.out)
    place = Path(config.ckpt or str(config.samples))
    if config.ckpt and place.is_dir():
        place = resolve(place)
    name = f"evaluation_cfg{config.cfg:g}_{config.labels}_seed{config.seed}" if config.ckpt else "evaluation"
    if config.ckpt and place.is_dir():
        return place / name
    return Path("runs/imagenet") / re.sub(r"[^A-Za-z0-9]+", "_", str(place)).strip("_") / name


def print_results(results: Mapping[str, Any], file: Path) -> None:
    """The table for people."""
    reference, split = results["reference"], results["reference"]["split"]
    against = f"{reference['data']}{f' ({split})' if split else ''}"
    print(f"\n{results['n']} samples of {results.get('checkpoint', results.get('samples'))} against {against}")
    for metric in results["metrics"].values():
        interval = f"   {metric['confidence']:.0%} [{metric['low']:.4g}, {metric['high']:.4g}]" if "low" in metric else ""
        spread = f" ± {metric['std']:.2g} over {metric['splits']} splits" if "std" in metric else ""
        print(f"  {metric['name']:<52} {metric['value']:.4g}{spread}{interval}")
        if "between_training_and_unseen_images" in metric:
            print(f"  {'  of training and test images':<52} {metric['between_training_and_unseen_images']:.4g}")
    for warning in results["warnings"]:
        print(f"  note: {warning}")
    print(f"  extractor    {results['extractor']['name']}")
    print(f"  files        {file}")


if __name__ == "__main__":
    register()
    cli.main("imagenet.evaluate", run)
