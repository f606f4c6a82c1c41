"""What a recipe may hold: sections, keys, types, ranges, defaults, and the checks of all these.

The text under a field documents it, here and in docs/recipe.md. Names are those of transformers'
TrainingArguments, PEFT and TRL wherever one of them has a name. What depends on the recipe as a whole
(its name, its other stages) is checked in `load`. Long because every key of a recipe stands here, beside its
checks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from pyft.config.modes import DEFAULT_MODE, Mode, known_mode, mode_name

HUB_PREFIX = "hf://"
SHIPPED_PREFIX = "pyft://"
SHIPPED_DATA = Path(__file__).resolve().parent.parent / "recipes" / "data"
TEMPLATE_SUFFIX = ".jinja"
LARGEST_COUNT = 2**31 - 1
CONTRADICTION = "contradiction"
"""The type of the errors that say which values exclude each other; their context is `what` and `fix`."""

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_OTHER_ADDRESS = re.compile(r"\w+://")


# Checks of single values: each takes the value as written and returns it as kept, or says how to fix it.


def _absolute_path(path: str) -> str:
    if "\0" in path:
        raise ValueError("remove the NUL character")
    return os.path.abspath(os.path.expanduser(path))


def _data_path(path: str) -> str:
    """Return an absolute path, for `pyft://` that of the shipped file; a name on the hub stays as it is."""
    if path.startswith(HUB_PREFIX):
        if not _HUB_NAME.fullmatch(path.removeprefix(HUB_PREFIX)):
            raise ValueError(f"name a data set of the hub, as {HUB_PREFIX}owner/name")
        return path
    if path.startswith(SHIPPED_PREFIX):
        parts = path.removeprefix(SHIPPED_PREFIX).split("/")
        if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            raise ValueError(f"name a shipped file, as {SHIPPED_PREFIX}folder/file.jsonl")
        return str(SHIPPED_DATA.joinpath(*parts))
    if _OTHER_ADDRESS.match(path):
        raise ValueError(f"download it and give its path; {HUB_PREFIX}owner/name is a data set of the hub")
    return _absolute_path(path)


def _column_names(columns: dict[str, str]) -> dict[str, str]:
    if not all(columns) or not all(columns.values()):
        raise ValueError("give names that are not empty, as {instruction: question, output: answer}")
    if len(set(columns.values())) < len(columns):
        raise ValueError("read each of the file's columns once: two keys have the same one")
    return columns


def _template_name(name: str) -> str:
    return _absolute_path(name) if name.endswith(TEMPLATE_SUFFIX) else name


def _model_path(name: str) -> str:
    """Return an absolute path, unless it can only be a name on the hub: `owner/name`, not there on disk."""
    is_path = name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1
    return _absolute_path(name) if is_path or os.path.exists(name) else name


def _resume_from(value: str) -> str:
    return value if value == "auto" else _absolute_path(value)


def _val_size(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_COUNT:
        raise ValueError("give 0 (no validation), a share below 1, or a whole number of rows")
    if isinstance(value, float) and value >= 1:
        raise ValueError(
            "from 1 on it counts rows: give a whole number, without a decimal point, or a share below 1"
        )
    return value


def _warmup_steps(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("from 1 on it counts steps: give a whole number, or a share of all steps below 1")
    return value


def _target_modules(value: Any) -> str | list[str]:
    if value == "all-linear":
        return value
    is_list = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    if not is_list or len(set(value)) != len(value):
        raise ValueError("give all-linear, or a list of different module names, as [q_proj, v_proj]")
    return value


def _model_shape(value: Any) -> str | dict[str, Any]:
    """Return the absolute path of a folder, or the keys of a config.json."""
    if isinstance(value, str) and value:
        return _absolute_path(value)
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise ValueError(
            "give a folder with a config.json, or its keys as a mapping with model_type: qwen3, say"
        )
    if not _is_finite(value):
        raise ValueError("give finite numbers in it")
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(_is_finite(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
LocalPath = Annotated[Text, AfterValidator(_absolute_path)]
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


@dataclass(frozen=True)
class Contradiction:
    """Values that are fine alone and exclude each other."""

    path: tuple[str | int, ...]
    """The key to look at, inside the section that finds it."""
    what: str
    fix: str


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys are refused, nothing is converted, nothing changes once read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def contradictions(cls, written: dict[str, Any]) -> Iterator[Contradiction]:
        """Find what excludes each other in `with_defaults(...)`; a wrong type is not its business."""
        yield from ()

    @classmethod
    def with_defaults(cls, written: Any) -> dict[str, Any]:
        """Return a plain mapping and the defaults of what it leaves out; {} if it is not a mapping."""
        if not isinstance(written, dict):
            return {}
        optional = ((key, field) for key, field in cls.model_fields.items() if not field.is_required())
        return {key: field.get_default(call_default_factory=True) for key, field in optional} | written

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Look for contradictions in the plain mapping, so that wrong values do not hide them."""
        errors: list[InitErrorDetails] = []
        section = None
        try:
            section = handler(value)
        except ValidationError as error:
            errors = [_passed_on(detail) for detail in error.errors(include_url=False)]
        for found in cls.contradictions(cls.with_defaults(value)):
            kind = PydanticCustomError(CONTRADICTION, "{what}: {fix}", {"what": found.what, "fix": found.fix})
            errors.append(InitErrorDetails(type=kind, loc=found.path, input=None))
        if section is None or errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section


def _passed_on(detail: Any) -> InitErrorDetails:
    context = detail.get("ctx", {})
    is_custom = detail["type"] == CONTRADICTION
    kind = PydanticCustomError(CONTRADICTION, "{what}: {fix}", context) if is_custom else detail["type"]
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


class DataSource(Section):
    """`data.train[]`, `data.validation[]`: a source of rows."""

    path: Annotated[Text, AfterValidator(_data_path)]
    """A file, a folder or a glob; `pyft://` has files shipped with pyft, `hf://owner/name` is on the hub."""
    format: RowFormatName = "auto"
    """How its rows are written; auto looks at the first 100, which must agree."""
    map: Text | None = None
    """A ready-made field map by name (format, columns, system text); keys given here win over it."""
    columns: Annotated[dict[str, str], AfterValidator(_column_names)] = {}
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
    val_size: Annotated[float | int, PlainValidator(_val_size)] = 0.05
    """Validation rows split off `train`: 0 none, below 1 a share, else a number; 0 beside `validation`."""
    max_length: Annotated[int, Field(ge=2, le=LARGEST_COUNT)] | None = 2048
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

    @classmethod
    def contradictions(cls, written: dict[str, Any]) -> Iterator[Contradiction]:
        if written.get("packing") is True and written.get("max_length") is None:
            yield Contradiction(
                ("max_length",),
                "data.packing is true and data.max_length is null: a pack needs a length",
                "set data.max_length, or data.packing: false",
            )
        if written.get("validation") and written.get("val_size") not in (None, 0):
            yield Contradiction(
                ("val_size",),
                "data.validation and data.val_size are both given",
                "keep data.validation for files of its own, or data.val_size to split some off data.train",
            )
        for path, source in _sources(written):
            shown, place = f"data.{path[0]}[{path[1]}]", source.get("path")
            is_local = isinstance(place, str) and not place.startswith(HUB_PREFIX)
            for key, default in (("name", None), ("split", "train")):
                if is_local and source.get(key) not in (None, default):
                    yield Contradiction(
                        (*path, key),
                        f"{shown}.{key} is for data sets of the hub, and {shown}.path is a file",
                        f"remove it, or write the path as {HUB_PREFIX}owner/name",
                    )
            if path[0] == "validation" and source.get("weight") not in (None, 1):
                yield Contradiction(
                    (*path, "weight"),
                    f"{shown}.weight says how often rows are learned, and these are only measured",
                    "remove it; max_samples takes some of them",
                )


def _sources(data: dict[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Yield every mapping in the lists of sources, with its place in the section."""
    for key in ("train", "validation"):
        entries = data.get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict):
                yield (key, index), entry


class TokenizerConfig(Section):
    """`model.tokenizer:` a tokenizer built from the training texts."""

    type: Literal["bpe"] = "bpe"
    """Byte-level BPE."""
    vocab_size: Annotated[int, Field(ge=257, le=LARGEST_COUNT)] = 4096
    """Number of tokens, bytes and special tokens included."""


def _tokenizer_kind(value: Any) -> str:
    return "settings" if isinstance(value, dict | TokenizerConfig) else "path"


class ModelConfig(Section):
    """`model:` what is trained."""

    name_or_path: Annotated[Text, AfterValidator(_model_path)] | None = None
    """The model's folder. A later stage has none: it starts from the result of the one before."""
    template: Annotated[Text, AfterValidator(_template_name)] | None = None
    """Chat template: a built-in one's name or a .jinja file; null means the tokenizer's own."""
    quantization: Literal["nf4"] | None = None
    """nf4 keeps the frozen weights in 4 bits (QLoRA; needs `adapter`)."""
    double_quant: bool = True
    """Quantises the scales of nf4 too, which saves 0.4 bits per weight."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type to compute in and to save."""
    trust_remote_code: bool = False
    """Allows Python code that comes with the model to run."""
    config: Annotated[str | dict[str, Any], PlainValidator(_model_shape)] | None = None
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

    @classmethod
    def contradictions(cls, written: dict[str, Any]) -> Iterator[Contradiction]:
        config, tokenizer = written.get("config"), written.get("tokenizer")
        if written.get("from_scratch") is not True:
            if config is not None:
                yield Contradiction(
                    ("config",),
                    "model.config is given without model.from_scratch",
                    "add model.from_scratch: true, or remove model.config (a model brings its own)",
                )
            if isinstance(tokenizer, dict):
                yield Contradiction(
                    ("tokenizer",),
                    "model.tokenizer builds a tokenizer without model.from_scratch: a model brings its own",
                    "remove it, or give the path of a tokenizer, or add model.from_scratch: true",
                )
            return
        if written.get("name_or_path") is not None:
            yield Contradiction(
                ("from_scratch",),
                "model.from_scratch is true and model.name_or_path is given",
                "keep one: random weights, or those of a model",
            )
        if config is None:
            yield Contradiction(
                ("from_scratch",),
                "model.from_scratch is true without model.config",
                "give the model's shape in model.config: a folder with a config.json, or its keys",
            )
        if tokenizer is None:
            yield Contradiction(
                ("from_scratch",),
                "model.from_scratch is true without model.tokenizer",
                "give a tokenizer's path, or build one with model.tokenizer: {type: bpe, vocab_size: 4096}",
            )


class AdapterConfig(Section):
    """`adapter:` LoRA. Without this section all weights are trained."""

    r: Count = 64
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the adapter's inputs dropped while training."""
    target_modules: Annotated[str | list[str], PlainValidator(_target_modules)] = "all-linear"
    """Which linear layers get one: all-linear (all but the output head), or their names."""


class TrainConfig(Section):
    """`train:` how it is trained, measured and saved."""

    output_dir: Annotated[LocalPath, Field(validate_default=True)] = "runs"
    """Where everything is written; if not given, runs/<name of the recipe>."""
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
    warmup_steps: Annotated[float, Field(ge=0, le=LARGEST_COUNT), AfterValidator(_warmup_steps)] = 0.03
    """Steps over which the learning rate rises; below 1 a share of all steps."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients of a larger norm are scaled down to it; null means never."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of that mean before dividing by it."""
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
    resume_from_checkpoint: Annotated[Text, AfterValidator(_resume_from)] | None = "auto"
    """auto continues from the newest checkpoint in output_dir, if any; null starts fresh; or a checkpoint."""
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
    mode: Annotated[str, PlainValidator(mode_name)] = DEFAULT_MODE
    """pretrain learns every token of plain text; sft learns the answers of conversations."""
    model: ModelConfig
    adapter: AdapterConfig | None = None
    data: DataConfig
    train: TrainConfig = TrainConfig()

    @classmethod
    def contradictions(cls, written: dict[str, Any]) -> Iterator[Contradiction]:
        yield from _how_weights_are_trained(ModelConfig.with_defaults(written.get("model")), written)
        data = DataConfig.with_defaults(written.get("data"))
        train = TrainConfig.with_defaults(written.get("train"))
        if data.get("streaming") is True and train and train.get("max_steps") is None:
            yield Contradiction(
                ("data", "streaming"),
                "data.streaming is true and train.max_steps is null: rows that are not counted have no "
                "epochs",
                "set train.max_steps, or data.streaming: false",
            )
        mode = known_mode(written.get("mode"))
        if mode is not None and mode.has_template and data.get("overlong") == "split":
            yield Contradiction(
                ("data", "overlong"),
                f"data.overlong is split and the mode is {mode.name}: a conversation cannot be split",
                "say drop, truncate or error; split is for mode pretrain",
            )
        if mode is not None and not mode.has_template:
            yield from _what_text_does_not_have(mode, data)


def _how_weights_are_trained(model: dict[str, Any], stage: dict[str, Any]) -> Iterator[Contradiction]:
    has_adapter, quantization = stage.get("adapter") is not None, model.get("quantization")
    if model.get("from_scratch") is True:
        found = (("adapter", has_adapter), ("model.quantization", quantization is not None))
        both = " and ".join(name for name, is_given in found if is_given)
        if both:
            yield Contradiction(
                ("model", "from_scratch"),
                f"model.from_scratch is true with {both}: random weights have to be trained themselves",
                f"remove {both}, or start from a model with model.name_or_path",
            )
    elif quantization == "nf4" and not has_adapter:
        yield Contradiction(
            ("model", "quantization"),
            f"model.quantization is {quantization} but there is no adapter: 4-bit weights cannot be trained",
            "add an adapter (adapter: {}) for QLoRA, or remove model.quantization for full fine-tuning",
        )


def _what_text_does_not_have(mode: Mode, data: dict[str, Any]) -> Iterator[Contradiction]:
    for key, default in (("train_on", "assistant"), ("train_on_eot", True)):
        value = data.get(key)
        if value not in (None, default):
            yield Contradiction(
                ("data", key),
                f"data.{key} is {str(value).lower()} and the mode is {mode.name}, which learns every token",
                f"remove it; a stage of mode sft can have it, as stages[1].data.{key}",
            )
    for path, source in _sources(data):
        if source.get("system"):
            yield Contradiction(
                ("data", *path, "system"),
                f"data.{path[0]}[{path[1]}].system is given and the mode is {mode.name}, in which there are "
                "no conversations",
                "remove it, or say mode: sft",
            )


Name = tuple[str, ...]
"""A key of the schema: a path without list indices, as `("data", "train", "path")`."""


@cache
def known_names() -> dict[Name, FieldInfo]:
    """List every key of the schema, sections before what they hold; below `model.config` anything goes."""
    names: dict[Name, FieldInfo] = {}
    _collect(Stage, (), names)
    return names


def accepts_null(name: Name) -> bool:
    """Return False where null can only mean `as if it were not written`; True for unknown names too."""
    field = known_names().get(name)
    return field is None or NoneType in get_args(field.annotation)


def _collect(section: type[BaseModel], prefix: Name, names: dict[Name, FieldInfo]) -> None:
    for key, field in section.model_fields.items():
        names[(*prefix, key)] = field
        for inner in sections_in(field.annotation):
            _collect(inner, (*prefix, key), names)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """List the sections that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]
