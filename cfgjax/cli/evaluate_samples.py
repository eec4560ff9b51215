"""`cfgjax evaluate --samples`: measures images that something else made."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import check_folder
from cfgjax.base.storage import place
from cfgjax.cli.common import begin_command, plan_of, required
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.sampling_settings import EvaluateSettings

OF_LABELS = ("accuracy", "log_posterior", "accuracy_per_class")  # metrics that compare samples with their labels


def evaluate_samples(given: flags.FlagValues) -> int:
    """Measures the images in --samples against a reference. Returns the exit code."""
    required(given, "out")
    if given.config is None:
        required(given, "features")
    if given.reference is None and given.config is None:
        needed = "--reference=FILE.npz (statistics or images), or --config=FILE for that of its data"
        raise UsageError(f"--samples needs a reference: {needed}")
    if given.features == "mixture":
        raise UsageError("--features=mixture is for points; --samples needs inception or classifier")
    check_folder(given.out, f"--out={given.out}")
    begin_command(given, f"measuring {given.samples}")

    from cfgjax.base.progress import Progress
    from cfgjax.data.sources.registry import open_source
    from cfgjax.distributed.cpu_devices import use_cores
    from cfgjax.distributed.devices import open_devices
    from cfgjax.evaluation.features.foreign import check_requested, open_samples, warn_of_dark
    from cfgjax.evaluation.features.networks import load_networks
    from cfgjax.evaluation.frontier.frontier import find_reference
    from cfgjax.evaluation.frontier.measure import measure_with_influences, warn_of_few
    from cfgjax.evaluation.frontier.paired import Design, with_intervals
    from cfgjax.evaluation.report.samples_files import (
        foreign_protocol,
        foreign_protocol_lines,
        samples_lines,
        write_samples,
    )

    samples = open_samples(given.samples)
    plan, data = plan_and_data(given, samples.shape[1:])
    if samples.shape[1:] != data.image_shape:
        raise UsageError(f"the images in {given.samples} have shape {samples.shape[1:]}, the data {data.image_shape}")
    use_cores()
    open_devices()
    network, judge = load_networks(plan, data, inception=given.inception, resize=given.resize)
    judging = judge or (network if network.judges else None)
    num_classes = None if judging is None else judging.sizes(samples.read(0, 1)[0])["logits"]
    count = check_requested(samples, given.num_samples, num_classes)
    warn_of_dark(samples)
    folder = place(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("reference", "image") as progress:
        shape, dataset = data.image_shape, lambda: open_source(data)
        reference = find_reference(plan.reference, dataset, network, shape, folder, progress.advance)
    warn_of_few(count, network, reference)
    with Progress("samples", "image", count) as progress:
        options = {"judge": judge, "neighbours": given.neighbours, "advance": progress.advance}
        found, influences = measure_with_influences(samples.read, count, network, reference, **options)
    found = with_intervals(found, influences, Design())
    if samples.labels is None:
        found = {name: value for name, value in found.items() if not name.startswith(OF_LABELS)}
    named = lambda network: network and {"name": network.name, "digest": network.digest}
    record = {
        "samples": {"path": samples.origin, "digest": samples.digest, "labels": samples.labels is not None},
        "num_samples": count,
        "image_shape": list(data.image_shape),
        "features": named(network),
        "judge": named(judge),
        "reference": {"digest": reference.digest, "count": reference.count, "origin": reference.origin},
    }
    record["protocol"] = card = foreign_protocol(record, found, samples.protocol)
    print("\n".join(["", *samples_lines(samples.origin, count, found), "", *foreign_protocol_lines(card), ""]))
    print(f"wrote {', '.join(write_samples(folder, record, found))} in {folder}")
    return DONE


def plan_and_data(given: flags.FlagValues, image_shape: Sequence[int]) -> tuple[EvaluateSettings, DataSettings]:
    """Returns (config.evaluate with flags, config.data): of --config, else with the data of the classifier's run.

    image_shape: of the samples, which the data have if there is neither.
    """
    from cfgjax.runs.settings import Settings
    from cfgjax.runs.workdir import read_settings

    if given.config is not None:
        settings = Settings.from_config(given.config)
        return plan_of(given, settings), settings.data
    flagged = {name: given[name].value for name in ("features", "classifier", "reference")}
    plan = EvaluateSettings(**{name: value for name, value in flagged.items() if value is not None})
    if given.classifier is not None:
        return plan, dataclasses.replace(read_settings(given.classifier).data, split="all")
    return plan, DataSettings(source="npz", num_classes=1, image_shape=tuple(image_shape))
