"""What fine-tuning needs: pairs, and a model to start from."""

from harness.config.types import RunConfig
from harness.errors import UserError

PAIR_SOURCES = ("docstrings", "instructions")
PAIR_KEYS = ("prompt_template", "completion_column")  # of DataConfig, for pairs alone


def validate_finetuning(config: RunConfig) -> None:
    """Check that data and task are of one kind, and what fine-tuning and LoRA are given.

    Raises UserError with one sentence.
    """
    kind, source = config.task.kind, config.data.source
    pairs = source in PAIR_SOURCES
    if pairs != (kind == "finetune") and kind != "memory":
        held = "pairs" if pairs else "no pairs of prompt and completion"
        cure = "task=finetune or task=memory" if pairs else "data=docstrings or data=instructions"
        raise UserError(
            f"task.kind={kind} does not go with data.source={source}, which holds {held}; "
            f"choose {cure}."
        )
    # A study that says it is one may: its runs show that everything works, not what is learned.
    if kind == "finetune" and config.model.path is None and not config.study.demonstration:
        raise UserError(
            f"model.path=null of model {config.model.name} leaves task.kind=finetune nothing to "
            "start from; give a hub id, a local folder, a cell that ran with task.save_model=true, "
            "or choose model=smollm2_135m."
        )
    if config.task.save_model and kind not in ("pretrain", "finetune"):
        raise UserError(
            f"task.save_model=true does not go with task.kind={kind}; allowed: pretrain, finetune."
        )
    _validate_numbers(config)


def _validate_numbers(config: RunConfig) -> None:
    rank, alpha = config.model.lora_rank, config.model.lora_alpha
    if rank is not None and rank < 1:
        raise UserError(f"model.lora_rank={rank} is too small; the least allowed is 1, or null.")
    if not alpha > 0:
        raise UserError(f"model.lora_alpha={alpha} is not allowed; it must be above 0.")
    for key, least in (("generate_samples", 0), ("generate_tokens", 1)):
        value = getattr(config.task, key)
        if value < least:
            raise UserError(f"task.{key}={value} is too small; the least allowed is {least}.")
