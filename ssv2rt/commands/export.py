"""`ssv2rt export`: an engine or predictions in the form that another program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_engine_run, json_option, under
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("source", required=False, metavar="[ENGINE|RUN|PREDICTIONS]", shell_complete=complete_engine_run)
@under(
    "Input and output",
    click.option("--to", type=click.Choice(["triton", "onnx", "labelstudio"]), required=True, help="The form."),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        help="Model repository, .onnx file, or .json file for Label Studio.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what is there."),
    json_option("the result"),
)
@under(
    "Triton",
    click.option("--name", help="Name of the model. Default: network and precision, such as resnet3d18-fp16."),
    click.option(
        "--backend",
        type=click.Choice(["onnxruntime", "tensorrt", "openvino"]),
        help="Backend of Triton. Default: the engine's own, or else onnxruntime.",
    ),
)
@under(
    "ONNX",
    click.option(
        "--input",
        type=click.Choice(["uint8", "float"]),
        help="uint8: [N, T, S, S, 3] as decoded; float: [N, 3, T, S, S] normalized. Default: uint8.",
    ),
)
@under(
    "Label Studio",
    click.option(
        "--files-root",
        type=click.Path(path_type=Path, file_okay=False),
        help="Its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT. Default: /.",
    ),
)
@click.option("--run", shell_complete=complete_engine_run, help="Run whose engine is used. Default: the newest.")
def export(as_json: bool, **options: Any) -> None:
    """Export an engine or predictions for another program.

    triton writes a model of a Triton model repository, and onnx one ONNX file, of an engine: its name or folder, or a run, by
    default the newest. labelstudio writes tasks with predictions for Label Studio, of an output of `score`, and the labeling
    configuration beside it. What is corrected there comes back by `--data EXPORT.json`.

    \b
    Examples:
      ssv2rt export fp16 --to triton --out models/
      ssv2rt export preds.csv --to labelstudio --out tasks.json
    """
    from ssv2rt.export.make import ExportRequest, export_as_requested

    print_facts(export_as_requested(ExportRequest(**options)), as_json)
