"""Trains on your own videos, one folder per class, and builds an engine: python own_data.py FOLDER [SETTING=VALUE...]"""

import sys

import ssv2rt

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python own_data.py FOLDER [SETTING=VALUE...]")
    dataset = ssv2rt.open_dataset(sys.argv[1])
    print(f"{len(dataset.table)} clips of {len(dataset.labels)} classes: {', '.join(dataset.labels)}")
    trained = ssv2rt.train(data=sys.argv[1], settings=sys.argv[2:])
    assert trained is not None  # it is None only in some processes of a distributed training
    evaluated = ssv2rt.evaluate(trained.run)
    print(f"top-1 {evaluated.result.top1:.1f}%, of each class the mean {evaluated.result.mean_class_accuracy:.1f}%")
    for label, clips, accuracy in evaluated.per_class():
        print(f"{accuracy:5.1f}% of {clips} clips: {label}")
    engine = ssv2rt.build_engine(trained.run, "fp16")
    print(f"engine: {engine.path}")
