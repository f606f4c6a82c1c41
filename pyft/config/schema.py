"""What a recipe may hold: sections, keys, types, ranges and defaults. The text under a field documents it.

Names are those of transformers' TrainingArguments, PEFT and TRL wherever one of them has a name. Only single
values are checked here, with the help of `values`; what does not fit together is said in `contradictions`,
and what comes from several places in `load`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StringConstraints,
    Tag,
)

from pyft.config import modes, values

Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1, le=values.LARGEST_COUNT)]
LocalPath = Annotated[Text, AfterValidator(values.absolute_path)]
RowFormatName = Literal[
    "auto",
    "text",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt",
    "query",
    "xtuner",
    "preference",
    "tokenized",
]


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys are refused, nothing is converted, nothing changes once read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSource(Section):
    """One entry of `data.train` or `data.validation`."""

    path: Annotated[Text, AfterValidator(values.data_path)]
    """A file, a folder or a glob; `pyft://` has files shipped with pyft, `hf://owner/name` is on the hub."""
    format: RowFormatName = "auto"
    """How its rows are written; auto looks at the first 100, which must agree."""
    map: Text | None = None
    """A ready-made field map by name (format, columns, system text); keys given here win over it."""
    columns: Annotated[dict[str, str], AfterValidator(values.column_names)] = {}
    """The format's key -> the file's own name for it, as {instruction: question, output: answer}."""
    system: str | None = None
    """System text for rows of this source that have none; null means `data.system`."""
    max_samples: Count | None = None
    """Rows taken, chosen by the seed, or with `streaming` the first ones; null means all."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Times its training rows are seen in an epoch: 2 twice, 0.5 a seeded half of them. With `streaming` its
    rows come in proportion to it: 2 twice as often as a source of weight 1."""
    name: Text | None = None
    """With hf://: the configuration of the data set."""
    split: Text = "train"
    """With hf://: its split."""


class DataConfig(Section):
    """`data:` what is learned from."""

    train: Annotated[list[DataSource], Field(min_length=1)]
    """The sources of the training rows."""
    validation: list[DataSource] = []
    """Rows that are only measured, never learned; without any, `val_size` splits some off `train`."""
    val_size: Annotated[float | int, PlainValidator(values.val_size)] = 0.05
    """Validation rows split off `train`: 0 none, below 1 a share, else a number; 0 beside `validation`."""
    max_length: Annotated[int, Field(ge=2, le=values.LARGEST_COUNT)] | None = 2048
    """Tokens of the longest sample, or of a pack; null means no limit."""
    packing: bool = True
    """Puts several samples into one row of `max_length` tokens; they do not see each other."""
    system: str | None = None
    """System text for rows that have none."""
    on_bad_record: Literal["error", "skip"] = "error"
    """A row that cannot be used ends the command, or is left out, counted and shown."""
    overlong: Literal["drop", "truncate", "split", "error"] | None = None
    """Rows longer than max_length; split is for pretrain. Null: split in mode pretrain, drop in mode sft."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """What mode sft learns: every trained assistant turn, only the last one, or every token."""
    train_on_eot: bool = True
    """Mode sft learns the mark that ends a turn; without it the model does not learn to stop."""
    streaming: bool = False
    """Reads rows while training instead of preparing all of them before. Needs train.max_steps."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that prepare rows: 0 none; null picks by the size of the files. Never changes a result."""
    cache_dir: LocalPath | None = None
    """Where prepared data are kept; null means $PYFT_CACHE_DIR, else ~/.cache/pyft."""


class TokenizerConfig(Section):
    """`model.tokenizer:` a tokenizer built from the training texts."""

    type: Literal["bpe"] = "bpe"
    """Byte-level BPE."""
    vocab_size: Annotated[int, Field(ge=257, le=values.LARGEST_COUNT)] = 4096
    """Number of tokens, bytes and special tokens included."""


def _tokenizer_kind(value: Any) -> str:
    return "settings" if isinstance(value, dict | TokenizerConfig) else "path"


class ModelConfig(Section):
    """`model:` what is trained."""

    name_or_path: Annotated[Text, AfterValidator(values.model_path)] | None = None
    """The model's folder. A later stage has none: it starts from the result of the one before."""
    template: Annotated[Text, AfterValidator(values.template_name)] | None = None
    """Chat template: a built-in one's name or a .jinja file; null means the tokenizer's own."""
    quantization: Literal["nf4"] | None = None
    """nf4 keeps the frozen weights in 4 bits (QLoRA; needs `adapter`)."""
    double_quant: bool = True
    """Quantises the scales of nf4 too, which saves 0.4 bits per weight."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type to compute in and to save."""
    trust_remote_code: bool = False
    """Allows Python code that comes with the model to run."""
    config: Annotated[str | dict[str, Any], PlainValidator(values.model_config)] | None = None
    """With `from_scratch`: the shape of the model, a folder with a config.json or its keys."""
    from_scratch: bool = False
    """Starts from random weights instead of a model folder."""
    tokenizer: (
        Annotated[
            Annotated[LocalPath, Tag("path")] | Annotated[TokenizerConfig, Tag("settings")],
            Discriminator(_tokenizer_kind),
        ]
        | None
    ) = None
    """A tokenizer's folder or .model file, or settings to build one; null means the model's own."""


class AdapterConfig(Section):
    """`adapter:` LoRA. Without this section all weights are trained."""

    r: Count = 64
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the adapter's inputs dropped while training."""
    target_modules: Annotated[str | list[str], PlainValidator(values.target_modules)] = "all-linear"
    """Which linear layers get one: all-linear (all but the output head), or their names."""


class TrainConfig(Section):
    """`train:` how it is trained, measured and saved."""

    output_dir: Annotated[LocalPath, Field(validate_default=True)] = "runs"
    """Where everything is written; by default runs/<name of the recipe>."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the data."""
    max_steps: Count | None = None
    """Optimizer steps; when set it wins over num_train_epochs."""
    per_device_train_batch_size: Count = 1
    """Samples per forward pass; with packing, packs."""
    per_device_eval_batch_size: Count = 1
    """The same when the validation loss is measured."""
    gradient_accumulation_steps: Count = 16
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float, Field(ge=0)] = 2e-4
    """Highest learning rate."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes down after the warm-up."""
    warmup_steps: Annotated[
        float, Field(ge=0, le=values.LARGEST_COUNT), AfterValidator(values.warmup_steps)
    ] = 0.03
    """Steps over which the learning rate rises; below 1 a share of all steps."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Longer gradients are cut to this length; null means never."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's."""
    gradient_checkpointing: bool = True
    """Computes activations twice instead of storing them: less memory, about a third slower."""
    logging_steps: Count = 1
    """A console line every so many steps; the log file has every step."""
    eval_steps: Count | None = 50
    """Validation loss and questions every so many steps; null means at the end only."""
    save_steps: Count | None = 50
    """A checkpoint every so many steps; null means at the end only."""
    save_total_limit: Count = 2
    """Checkpoints kept."""
    evaluation_inputs: list[Text] = []
    """Questions the model is asked before, during and after training."""
    evaluation_system: str | None = None
    """System text for these questions."""
    evaluation_max_new_tokens: Count = 64
    """Longest answer, in tokens."""
    resume_from_checkpoint: Annotated[Text, AfterValidator(values.resume_from)] | None = "auto"
    """auto goes on from the newest checkpoint in output_dir, if any; null starts fresh; or a checkpoint."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Fixes everything random."""
    report_to: list[Literal["tensorboard", "wandb"]] = []
    """Trackers that get the numbers too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""


class Stage(Section):
    """One run of training: the whole recipe, or an entry of its `stages:`."""

    name: Text
    """Name of the stage and of its folder; by default its mode."""
    mode: Annotated[str, PlainValidator(modes.mode_name)] = modes.DEFAULT_MODE
    """pretrain learns every token of plain text; sft learns the answers of conversations."""
    model: ModelConfig
    adapter: AdapterConfig | None = None
    data: DataConfig
    train: TrainConfig = TrainConfig()
