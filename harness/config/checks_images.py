"""What goes with what: texts and decoders, images and classifiers."""

from harness.config.types import DataConfig, ModelConfig, RunConfig
from harness.errors import UserError

IMAGE_FAMILIES = ("vit",)
IMAGE_SOURCES = ("digits", "image_folder", "hub_images")
# Keys of the data group that say nothing about texts.
IMAGE_KEYS = ("image_column", "label_column", "image_size", "channels", "folds", "fold")
LEAST_FOLDS = 3


def reads_images(model: ModelConfig) -> bool:
    """Whether a model classifies images instead of predicting tokens."""
    return model.family in IMAGE_FAMILIES


def validate_images(config: RunConfig) -> None:
    """Check that model, data and task are of one kind, and the division into folds.

    Raises UserError with one sentence.
    """
    model, data, kind = config.model, config.data, config.task.kind
    images = data.source in IMAGE_SOURCES
    if images != reads_images(model):
        held = "labelled images" if images else "text"
        fitting = "model=vit_digits" if images else "data=digits"
        raise UserError(
            f"model.family={model.family} cannot read data.source={data.source}, which holds "
            f"{held}; choose for example {fitting}."
        )
    wanted = "classify" if images else "pretrain"
    if images != (kind == "classify") and kind != "memory":
        raise UserError(
            f"task.kind={kind} does not go with data.source={data.source}; "
            f"choose task={wanted} or task=memory."
        )
    if images:
        _validate_sizes(model, data)
        _validate_folds(data)


def _validate_sizes(model: ModelConfig, data: DataConfig) -> None:
    for key in ("image_size", "channels"):
        if getattr(data, key) != getattr(model, key):
            raise UserError(
                f"data.{key}={getattr(data, key)} is not the model.{key}={getattr(model, key)} of "
                f"model {model.name}; set both to the same number."
            )


def _validate_folds(data: DataConfig) -> None:
    if data.folds is None:
        if data.fold:
            raise UserError(f"data.fold={data.fold} needs data.folds, the number of folds.")
        return
    if data.folds < LEAST_FOLDS:
        raise UserError(
            f"data.folds={data.folds} is too small; training, validation and test take "
            f"{LEAST_FOLDS}."
        )
    if not 0 <= data.fold < data.folds:
        raise UserError(f"data.fold={data.fold} must lie between 0 and {data.folds - 1}.")
