"""Fold a trained adapter into its base and write a plain Hugging Face folder.

    python -m pyft.merge OUTPUT_DIR DEST [--dtype float32]

    W_merged = W + scaling * B A        W: the original base, not its NF4-rounded form

OUTPUT_DIR is a run, a stage, a checkpoint or an adapter folder. DEST gets weights, config, tokenizer and chat
template; it appears whole or not at all. A full run has nothing to merge: its result is copied.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyft.command import run_command
from pyft.disk import settle, staged_folder, staging_path
from pyft.errors import ConfigError
from pyft.run.layout import GENERATION_CONFIG, MODEL_CONFIG

if TYPE_CHECKING:
    from pyft.run.result import Result

_MODEL_FILES = (MODEL_CONFIG, GENERATION_CONFIG, "*.safetensors", "*.safetensors.index.json", "*.py")
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken",
)  # fmt: skip


def merge_run(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    end_marks: Sequence[int] = (),
    trust_remote_code: bool = False,
) -> str:
    """Merge an adapter into its original base and write the result.

    A taken `dest`, or an adapter that does not fit its base, is a ConfigError.

    Args:
        adapter: folder with an adapter in PEFT's layout.
        base: folder of the model it was trained on, in float.
        dest: folder to make; it may exist if it is empty.
        tokenizer: folder whose tokenizer files go along; by default the adapter's.
        dtype: name of the dtype to merge and write in; by default the one the base is stored in.
        end_marks: ids that end an answer, for generation_config.json, beside those of the base.
        trust_remote_code: allow Python code shipped with the base to run.

    Returns:
        Name of the dtype written.
    """
    from pyft.model.adapter_files import apply_adapter
    from pyft.model.adapters import merge_adapters
    from pyft.model.architecture import DTYPES
    from pyft.model.generate import add_end_marks
    from pyft.model.load import load_model
    from pyft.model.save import save_model
    from pyft.model.weight_files import stored_dtype

    _refuse_taken(Path(dest))
    chosen = DTYPES[dtype] if dtype is not None else stored_dtype(base)

    def fill(folder: Path) -> None:
        model = load_model(base, dtype=chosen, trust_remote_code=trust_remote_code)
        apply_adapter(model, adapter)
        merge_adapters(model)
        add_end_marks(model, end_marks)
        save_model(model, folder, chosen)
        _copy(Path(tokenizer or adapter), folder, _TOKENIZER_FILES)
        if trust_remote_code:
            _copy(Path(base), folder, ("*.py",))

    _appear_whole(Path(dest), fill)
    return str(chosen).removeprefix("torch.")


def copy_model(
    source: str | os.PathLike[str], dest: str | os.PathLike[str], tokenizer: str | os.PathLike[str]
) -> None:
    """Copy a whole model and a tokenizer into `dest`, new or empty, without a run's logs and checkpoints."""
    _refuse_taken(Path(dest))

    def fill(folder: Path) -> None:
        _copy(Path(source), folder, _MODEL_FILES)
        _copy(Path(tokenizer), folder, _TOKENIZER_FILES)

    _appear_whole(Path(dest), fill)


def _refuse_taken(dest: Path) -> None:
    if dest.is_symlink() or (dest.exists() and not dest.is_dir()):
        raise ConfigError(f"the destination is not a folder ({dest}): give a new one")
    if dest.is_dir() and any(dest.iterdir()):
        raise ConfigError(f"the destination is not empty ({dest}): give a new folder")


def _appear_whole(dest: Path, fill: Callable[[Path], None]) -> None:
    """Fill a hidden folder beside `dest`, put it on disk, and rename it; on failure nothing is left."""
    dest = dest.absolute()
    dest.parent.mkdir(parents=True, exist_ok=True)
    # The process is in the name: another merge into the same folder has one of its own.
    with staged_folder(dest, staging_path(dest.with_name(f"{dest.name}.{os.getpid()}"))) as folder:
        fill(folder)
        settle(folder)


def _copy(source: Path, dest: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files that match, contents only, so that modes follow the umask; what is there stays."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (dest / file.name).exists():
                shutil.copyfile(file, dest / file.name)


def main(options: argparse.Namespace) -> None:
    """Merge as the command line says; nothing to merge, or nowhere to put it, is a ConfigError."""
    _refuse_taken(Path(options.dest))
    from pyft.run.result import find_result

    result = find_result(options.output_dir)
    if result.base is None:
        if options.dtype is not None:
            raise ConfigError(
                f"--dtype does not apply, there is no adapter to merge ({result.folder}): leave it out"
            )
        print(f"{result.folder} is a whole model, so there is nothing to merge: copying it", file=sys.stderr)
        copy_model(result.folder, options.dest, result.tokenizer)
    else:
        print(f"merging {result.folder} into {result.base}", file=sys.stderr)
        written = merge_run(
            result.folder,
            result.base,
            options.dest,
            tokenizer=result.tokenizer,
            dtype=options.dtype,
            end_marks=_end_marks(result),
            trust_remote_code=result.trust_remote_code,
        )
        if written != "float32":
            print(f"sums are rounded to {written}; --dtype float32 keeps them exact", file=sys.stderr)
    print(options.dest)


def _end_marks(result: Result) -> list[int]:
    """Find the ids that end an answer of the tuned model; none where there is no template, which is said."""
    from pyft.data.chat.bind import trained_template
    from pyft.model.restore import load_result_tokenizer
    from pyft.run.result import holds_tokenizer

    why = f"{result.tokenizer} has no tokenizer"
    if holds_tokenizer(result.tokenizer):
        try:
            tokenizer = load_result_tokenizer(result)
            template = trained_template(result.mode, result.template, tokenizer)
            return [] if template is None else template.stop_token_ids(tokenizer)
        except ConfigError as error:
            why = "; ".join(error.messages)
    print(f"generation_config.json keeps the base's end marks only: {why}", file=sys.stderr)
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyft.merge", description="Fold a trained adapter into its base model."
    )
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", help="a run, a stage, a checkpoint or an adapter folder"
    )
    parser.add_argument("dest", metavar="DEST", help="folder to write; new or empty")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the merged weights (default: that of the base on disk)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, _parser()))
